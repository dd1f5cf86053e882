"""Programs that try to get out, to use up the machine or to fool the reader, each with a harmless twin of its shape.

`harmless` are the values that an attack may end with; with none it must fail. The twin gives `value`; `checked` is
False where the twin needs something that the source check refuses, so that only the run below the check can show it.
"""

from typing import Any, NamedTuple


class Attack(NamedTuple):
    code: str
    twin: str
    value: Any
    harmless: tuple[Any, ...] = ()
    checked: bool = True


FLOOR = ("import math\nanswer = math.floor(2.5)", 2)
FUNCTION = ("def f(x):\n    return x + 1\nanswer = f(1)", 2)


def _reach(module: str, call: str) -> Attack:
    return Attack(f"import {module}\nanswer = {call}", *FLOOR)


IMPORTS = {
    "os": Attack("import os\nanswer = os.listdir('/')", *FLOOR),
    "os.environ": Attack("import os\nanswer = dict(os.environ)", *FLOOR, harmless=({},)),
    "os.getenv": Attack("import os\nanswer = os.getenv('PATH')", *FLOOR, harmless=(None,)),
    "subprocess": _reach("subprocess", "subprocess.check_output(['id']).decode()"),
    "socket": _reach("socket", "socket.create_connection(('127.0.0.1', 22)).fileno()"),
    "urllib": Attack(
        "from urllib.request import urlopen\nanswer = urlopen('http://127.0.0.1').status",
        "from math import floor\nanswer = floor(2.5)",
        2,
    ),
    "pathlib": Attack("from pathlib import Path\nanswer = Path('/etc/passwd').read_text()", *FLOOR),
    "pathlib write": Attack("from pathlib import Path\nPath('/sandbox_was_here').write_text('x')\nanswer = 1", *FLOOR),
    "sys": Attack("import sys\nanswer = sys._getframe(1).f_globals", *FLOOR),
    "sys.path": Attack("import sys\nanswer = sys.path[0]", *FLOOR),
    "__import__": Attack("answer = __import__('os').getpid()", "answer = int('7')", 7),
    "open read": Attack("answer = open('/etc/passwd').read()", "answer = str('root')", "root"),
    "open write": Attack("open('/sandbox_was_here', 'w').write('x')\nanswer = 1", "a = str('x')\nanswer = 1", 1),
    "eval": Attack("answer = eval('1+1')", "answer = int('2')", 2, harmless=(2,)),
    "exec": Attack("exec('answer = 2')", "a = str('answer = 2')\nanswer = 2", 2, harmless=(2,)),
    "compile": Attack("answer = compile('1', 'x', 'eval').co_code", "answer = round(1.5)", 2),
    "getattr": Attack(
        "answer = str(getattr((), '__class__'))", "answer = str(())", "()", harmless=("<class 'tuple'>",)
    ),
    "vars": Attack("answer = str(vars())", "answer = str([])", "[]"),
    "globals": Attack("answer = str(globals()['__builtins__'])", "answer = str({'a': 1}['a'])", "1"),
    "input": Attack("answer = input('?')", "answer = str('?')", "?"),
    "breakpoint": Attack("breakpoint()\nanswer = 1", "abs(1)\nanswer = 1", 1),
}

INTROSPECTION = {
    "subclasses": Attack("answer = len(().__class__.__base__.__subclasses__())", "answer = len((1, 2))", 2),
    "format attribute": Attack(
        "answer = '{0.__class__}'.format(1)", "answer = '{}' + str(1)", "{}1", harmless=("<class 'int'>",)
    ),
    "format_map": Attack("answer = '{a.__class__.__mro__}'.format_map({'a': 1})", "answer = 'a'.upper()", "A"),
    "traceback frames": Attack(
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    answer = str(e.__traceback__.tb_frame.f_globals)",
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    answer = str(e)",
        "division by zero",
    ),
    "generator frame": Attack(
        "g = (x for x in [1])\nanswer = str(g.gi_frame.f_globals)", "g = (x for x in [1])\nanswer = sum(g)", 1
    ),
    "function globals": Attack("def f():\n    return 1\nanswer = str(f.__globals__)", *FUNCTION),
    "function code": Attack("def f():\n    return 1\nanswer = str(f.__code__.co_consts)", *FUNCTION),
    "NFKC": Attack("answer = ＿＿import＿＿('os').getpid()", "ａ = 2\nanswer = a", 2),
    "import as __builtins__": Attack(
        "import math as __builtins__\nanswer = __builtins__.floor(2.5)",
        "import math as m\nanswer = m.floor(2.5)",
        2,
        harmless=(2,),
    ),
    "except as __builtins__": Attack(
        "try:\n    1/0\nexcept ZeroDivisionError as __builtins__:\n    answer = str(__builtins__)",
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    answer = str(e)",
        "division by zero",
        harmless=("division by zero",),
    ),
    "walrus dunder": Attack(
        "if (__class__ := 1):\n    answer = __class__", "if (a := 1):\n    answer = a", 1, harmless=(1,)
    ),
    "lambda dunder": Attack("answer = (lambda __class__: __class__)(1)", "answer = (lambda a: a)(1)", 1, harmless=(1,)),
    "keyword dunder": Attack(
        "answer = dict(__class__=1)", "answer = dict(a=1)", {"a": 1}, harmless=({"__class__": 1},)
    ),
    "decorator": Attack(
        "@print\n@exec\n@input\nclass X:\n    pass\nanswer = 1",
        "def double(f):\n    return lambda x: 2 * f(x)\n@double\ndef g(x):\n    return x\nanswer = g(2)",
        4,
    ),
    "match class": Attack(
        "match 1:\n    case object(__class__=k):\n        answer = str(k)",
        "x = 1\nif x == 1:\n    answer = 'one'",
        "one",
        harmless=("<class 'int'>",),
    ),
    "async": Attack(
        "import asyncio\nasync def f():\n    return 1\nanswer = asyncio.run(f())", *FUNCTION, harmless=(1,)
    ),
    "star import": Attack(
        "from os import *\nanswer = getcwd()", "from math import floor\nanswer = floor(2.5)", 2, harmless=("/",)
    ),
    "class with __float__": Attack(
        "class A:\n    def __float__(self):\n        return 5.0\nanswer = A()",
        "class A:\n    def half(self):\n        return 2.5\nanswer = A().half()",
        2.5,
    ),
    "metaclass": Attack("answer = str(type('X', (), {}).mro())", "answer = str(type(1) is int)", "True"),
    "coding cookie": Attack(
        "# -*- coding: utf-7 -*-\n+AGk-mport os\nanswer = os.getpid()", "# -*- coding: utf-8 -*-\nanswer = 1", 1
    ),
    "NUL byte": Attack("answer = 1\0import os", "answer = 1", 1),
    "lone surrogate": Attack("answer = '\ud800'", "answer = '\u00e9'", "\u00e9"),
}

CPU = {
    "while True": Attack("while True:\n    pass", "n = 0\nwhile n < 3:\n    n += 1\nanswer = n", 3),
    "swallows exceptions": Attack(
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "n = 0\nwhile n < 3:\n    try:\n        n += 1\n    except ValueError:\n        pass\nanswer = n",
        3,
    ),
    "finally for ever": Attack(
        "def f():\n    try:\n        while True:\n            pass\n    finally:\n        f()\nf()\nanswer = 1",
        "def f():\n    try:\n        return 1\n    finally:\n        pass\nanswer = f()",
        1,
    ),
    "10**10**10": Attack("answer = 10**10**10 % 7", "answer = 10**10**1 % 7", 4),
    "9**9**9**9": Attack("answer = 9**9**9**9 % 7", "answer = 9**9 % 7", 1),
    "pow": Attack("answer = pow(3, 10**9) % 7", "answer = pow(3, 9) % 7", 6),
    "factorial": Attack(
        "import math\nanswer = math.factorial(10**8) % 7", "import math\nanswer = math.factorial(5)", 120
    ),
    "comb": Attack("import math\nanswer = math.comb(10**9, 10**8) % 7", "import math\nanswer = math.comb(9, 2)", 36),
    "sum of a range": Attack("answer = sum(range(10**12))", "answer = sum(range(10**2))", 4950),
    "squaring": Attack(
        "x = 3\nfor i in range(60):\n    x = x * x\nanswer = x % 7",
        "x = 3\nfor i in range(2):\n    x = x * x\nanswer = x",
        81,
    ),
    "colliding keys": Attack(
        "d = {}\nfor i in range(10**7):\n    d[i * (2**61 - 1)] = i\nanswer = len(d)",
        "d = {}\nfor i in range(10):\n    d[i * (2**61 - 1)] = i\nanswer = len(d)",
        10,
    ),
    "round": Attack("answer = round(5, -10**9)", "answer = round(5, -1)", 0, harmless=(0,)),
    "recursion": Attack("def f(n):\n    return f(n + 1)\nanswer = f(0)", *FUNCTION),
    "string search": Attack(
        "s = 'a' * 10**6\nn = 0\nwhile True:\n    n += s.count('a')", "s = 'a' * 10\nanswer = s.count('a')", 10
    ),
    "sort": Attack(
        "x = [3, 1, 2]\nwhile True:\n    x = sorted(x * 2)[:10**5]", "x = [3, 1, 2]\nanswer = sorted(x)", [1, 2, 3]
    ),
    "sleep": Attack("import time\ntime.sleep(100)\nanswer = 1", *FLOOR, harmless=(1,)),
}

MEMORY = {
    "shift": Attack("answer = (1 << (1 << 60)) % 7", "answer = (1 << 6) % 7", 1),
    "string times": Attack("answer = len('a' * 10**12)", "answer = len('a' * 10**2)", 100),
    "list times": Attack("answer = len([0] * 10**12)", "answer = len([0] * 10**2)", 100),
    "growing list": Attack(
        "x = [0]\nwhile True:\n    x.append(x[-1] + 1)", "x = [0]\nx.append(x[-1] + 1)\nanswer = x", [0, 1]
    ),
    "growing list that goes on": Attack(
        "while True:\n    try:\n        x = [0]\n        while True:\n            x += x\n"
        "    except MemoryError:\n        pass",
        "try:\n    x = [0]\n    x += x\nexcept MemoryError:\n    pass\nanswer = x",
        [0, 0],
    ),
    "product": Attack(
        "import itertools\nanswer = len(list(itertools.product(range(10), repeat=20)))",
        "import itertools\nanswer = len(list(itertools.product(range(10), repeat=2)))",
        100,
        checked=False,
    ),
    "replace": Attack(
        "answer = len(('a' * 10**6).replace('a', 'b' * 10**6))", "answer = 'aa'.replace('a', 'bb')", "bbbb"
    ),
    "join": Attack("answer = len(('a' * 10**6).join(['b'] * 10**6))", "answer = 'a'.join(['b'] * 3)", "babab"),
    "f-string width": Attack("answer = len(f'{1:>10000000000}')", "answer = len(f'{1:>10}')", 10),
    "zfill": Attack("answer = len('1'.zfill(10**11))", "answer = len('1'.zfill(10))", 10),
    "nested doubling": Attack(
        "x = 'a'\nfor i in range(50):\n    x += x\nanswer = len(x)",
        "x = 'a'\nfor i in range(5):\n    x += x\nanswer = len(x)",
        32,
    ),
    "bytes": Attack("answer = len(bytearray(4 * 10**9))", "answer = len(str(4 * 10**9))", 10),
}

PARSER = {
    "parentheses": Attack("answer = " + "(" * 3000 + "1" + ")" * 3000, "answer = ((((1))))", 1, harmless=(1,)),
    "unary minus": Attack("answer = " + "-" * 3900 + "1", "answer = ----1", 1, harmless=(1,)),
    "not": Attack("answer = " + "not " * 1900 + "1", "answer = not not 1", True, harmless=(True,)),
    "plus": Attack("answer = 1" + "+1" * 1900, "answer = 1+1+1", 3, harmless=(1901,)),
    "nested lists": Attack("answer = " + "[" * 1000 + "]" * 1000, "answer = [[1]]", [[1]]),
    "attributes": Attack("a = 1\nanswer = a" + ".real" * 700, "answer = 'a'.upper().lower()", "a"),
    "calls": Attack("answer = print" + "()" * 1000, "answer = str(int(str(1)))", "1"),
    "indentation": Attack(
        "".join(" " * i + "if 1:\n" for i in range(98)) + " " * 98 + "answer = 1",
        "if 1:\n if 1:\n  if 1:\n   answer = 1",
        1,
        harmless=(1,),
    ),
    "many lines": Attack("answer = 1\n" * 100_000, "answer = 1\n" * 100, 1, harmless=(1,)),
    "unclosed": Attack("answer = (" * 900, "answer = (1)", 1),
    "lambda chain": Attack("answer = " + "lambda: " * 900 + "1", "answer = (lambda: 1)()", 1),
    "f-string nest": Attack(
        "answer = f'{" + "(" * 190 + "1" + ")" * 190 + "}'", "answer = f'{(1)}'", "1", harmless=("1",)
    ),
    "backslash at the end": Attack("answer = 1 \\", "answer = 1 \\\n + 1", 2),
    "open string at the end": Attack("answer = '''1", "answer = '''1'''", "1"),
}

RESULT = {
    "100,000 bits": Attack("answer = 1 << 100000", "answer = 1 << 100", 1 << 100),
    "1,025 bits": Attack("answer = 1 << 1024", "answer = 1 << 1023", 1 << 1023),
    "1 MB string": Attack("answer = 'x' * 10**6", "answer = 'x' * 10**3", "x" * 1000),
    "200 deep": Attack(
        "x = []\nfor i in range(200):\n    x = [x]\nanswer = x",
        "x = []\nfor i in range(1):\n    x = [x]\nanswer = x",
        [[]],
    ),
    "self-reference": Attack("x = []\nx.append(x)\nanswer = x", "x = []\nx.append(1)\nanswer = x", [1]),
    "100,000 items": Attack("answer = list(range(100000))", "answer = list(range(3))", [0, 1, 2]),
    "no answer": Attack("x = 1", "answer = 1", 1),
    "answer in a function": Attack("def f():\n    answer = 1\nf()", "def f():\n    return 1\nanswer = f()", 1),
    "4,300 digits": Attack("answer = str(10**5000)", "answer = str(10**5)", "100000"),
    "function": Attack("answer = lambda: 1", "answer = (lambda: 1)()", 1),
    "builtin": Attack("answer = print", "answer = abs(-1)", 1),
    "type": Attack("answer = int", "answer = int(1.5)", 1),
    "set": Attack("answer = {1, 2}", "answer = sorted({1, 2})", [1, 2]),
    "bytes": Attack("answer = b'x'", "answer = 'x'", "x"),
    "complex": Attack("answer = 3 + 4j", "answer = 3 + 4", 7),
    "function in a list": Attack("answer = [1, [lambda: 1]]", "answer = [1, [1]]", [1, [1]]),
    "print flood": Attack("while True:\n    print('x' * 1000)", "print('x' * 1000)\nanswer = 1", 1),
    "print bomb": Attack("print('x' * 10**7)\nanswer = 1", "print('x')\nanswer = 1", 1),
    "patched json": Attack("import json\njson.dumps = lambda x: '7'\nanswer = 5", *FLOOR),
    "own json": Attack(
        "class json:\n    pass\ndef dumps(x):\n    return '7'\nanswer = 5",
        "class a:\n    pass\nanswer = 5",
        5,
        harmless=(5,),
    ),
    "printed JSON": Attack("print('[42]')\nprint('{\"ok\": true}')", "print('[42]')\nanswer = 1", 1),
    "SystemExit": Attack(
        "raise SystemExit(7)", "try:\n    raise ValueError('7')\nexcept ValueError:\n    answer = 7", 7
    ),
    "exit": Attack("exit(7)\nanswer = 1", "abs(7)\nanswer = 1", 1),
    "os._exit": Attack("import os\nos._exit(7)", *FLOOR),
    "KeyboardInterrupt": Attack(
        "raise KeyboardInterrupt", "try:\n    raise ValueError\nexcept ValueError:\n    answer = 7", 7
    ),
    "pretends a time-out": Attack("raise TimeoutError('feed time limit exceeded')", "answer = 1", 1),
}

_OS_CALLS = {
    "fork": "os.fork()",
    "execve": "os.execve('/bin/sh', ['sh'], {})",
    "system": "os.system('touch /sandbox_was_here')",
    "popen": "os.popen('id').read()",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "chmod": "os.chmod('/etc/passwd', 0o777)",
    "unlink": "os.unlink('/etc/hostname')",
    "remove": "os.remove('/etc/hostname')",
    "symlink": "os.symlink('/etc/passwd', '/sandbox_was_here')",
    "mkdir": "os.mkdir('/sandbox_was_here')",
    "setuid": "os.setuid(0)",
    "write to fd 1": "os.write(1, b'forged')",
    "read fd 0": "os.read(0, 10)",
    "dup": "os.dup(1)",
    "pipe": "os.pipe()",
    "memfd": "os.memfd_create('x')",
    "unshare": "os.unshare(0x10000000)",
    "putenv": "os.putenv('PATH', '/')",
}
_C_CALLS = {
    "ptrace": "ptrace(0, 0, 0, 0)",
    "mmap RWX": "mmap(0, 4096, 7, 34, -1, 0)",
    "io_uring": "syscall(425, 1, 0)",
    "userfaultfd": "syscall(323, 0)",
    "bpf": "syscall(321, 0, 0, 0)",
    "mount": "mount(b'none', b'/mnt', b'tmpfs', 0, 0)",
    "reboot": "syscall(169, 0, 0, 0)",
    "x32 syscall": "syscall(0x40000000 + 39)",
    "prctl": "prctl(1, 0, 0, 0, 0)",
}
_OTHERS = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "own memory": "answer = open('/proc/self/mem', 'rb').read(10)",
    "own maps": "answer = open('/proc/self/maps').read()",
    "parent's environment": "import os\nanswer = open(f'/proc/{os.getppid()}/environ').read()",
    "setrlimit up": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nanswer = 1",
    "ignore SIGXCPU": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nanswer = 1",
    "thread": "import threading\nthreading.Thread(target=print).start()\nanswer = 1",
    "mmap module": "import mmap\nanswer = len(mmap.mmap(-1, 4096))",
    "multiprocessing": "import multiprocessing\nanswer = multiprocessing.cpu_count()",
    "server socket": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\nanswer = 1",
    "pickle": "import pickle\nanswer = pickle.loads(b'cos\\ngetpid\\n(tR.')",
}
OS_SURFACE = (
    {name: Attack(f"import os\nanswer = str({call})", *FLOOR) for name, call in _OS_CALLS.items()}
    | {name: Attack(f"import ctypes\nanswer = ctypes.CDLL(None).{call}", *FLOOR) for name, call in _C_CALLS.items()}
    | {name: Attack(code, *FUNCTION) for name, code in _OTHERS.items()}
)

CATEGORIES = {
    "imports": IMPORTS,
    "introspection": INTROSPECTION,
    "cpu": CPU,
    "memory": MEMORY,
    "parser": PARSER,
    "result": RESULT,
    "os": OS_SURFACE,
}
ALL = {f"{category}: {name}": attack for category, attacks in CATEGORIES.items() for name, attack in attacks.items()}
