"""A third party's method: the student learns to repeat the answer twice."""

from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.training.losses import channel_cross_entropy
from tinyllm_bench.training.method import Method, MethodConfig, Term


class EchoConfig(MethodConfig):
    """times: how often the target stands there."""

    times: int = 2


class Echo(Method):
    """Label-only training on a target that is written several times."""

    paper = "none"
    Config = EchoConfig

    def examples(self, record, annotations, ask):
        """One label example."""
        return [ask.example(record, LABEL, " ".join([ask.label_target(record)] * self.config.times))]

    def loss(self, batch, student, teacher, step):
        """Cross-entropy on the label."""
        return [Term(channel, 1.0, total) for channel, total in channel_cross_entropy(batch, student).items()]
