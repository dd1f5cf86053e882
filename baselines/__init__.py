"""Distillation methods, one file each, loaded by `tinyllm_bench.base.plugins.load_method`."""
