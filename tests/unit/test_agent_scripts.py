"""A script run by the agent is the same as the script run by python3: stdout, stderr and exit code, compared side by side."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_harness import SYSTEM_PYTHON, Agent, Ending, start_agent

# fmt: off
# ruff: noqa: E501
SCRIPTS = {
    "prints": "print('hello'); import sys; print('err', file=sys.stderr)",
    "arguments": "import sys; print(sys.argv[1:], sys.path[0] == __file__.rpartition('/')[0])",
    "namespace": "print(sorted(globals())); print(__name__, __doc__, __spec__, __package__, type(__loader__).__name__)",
    "docstring": "'''About.'''\nprint(__doc__)",
    "flags": "import sys; print(sys.flags, sys.warnoptions, sys.executable, sys.orig_argv == [sys.executable, *sys.argv])",
    "path": "import sys; print(sys.path[1:])",
    "no_agent": "import sys; print([n for n in sys.modules if 'skillcell' in n], [p for p in sys.path if 'package' in p])",
    "stdio": (
        "import sys\nfor f in (sys.stdin, sys.stdout, sys.stderr):\n"
        "    print(f.name, f.mode, f.encoding, f.errors, f.fileno(), f.isatty(), f.buffer.raw.name)\n"
        "print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__)"
    ),
    "descriptors": "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')))",
    "signals": (
        "import signal\nfor s in sorted(signal.valid_signals()):\n    print(s, signal.getsignal(s))\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\nprint(signal.set_wakeup_fd(-1))"
    ),
    "subprocess_signals": (
        "import subprocess\nprint(subprocess.run(['grep', '-E', 'Sig(Blk|Ign)', '/proc/self/status'], capture_output=True).stdout)"
    ),
    "stack": "import inspect, traceback; print(len(inspect.stack())); traceback.print_stack()",
    "warning": "import warnings; warnings.warn('careful', stacklevel=9); warnings.warn('again')",
    "stdin_reads": "import sys; print(repr(sys.stdin.read()), sys.stdin.readline() == '')",
    "stdin_lines": "for line in open(0): print(len(line))",
    "stdin_input": "print(input()); print(input()); input()",
    "exit_none": "import sys; sys.exit()",
    "exit_int": "import sys; sys.exit(3)",
    "exit_large": "import sys; sys.exit(300)",
    "exit_negative": "import sys; sys.exit(-1)",
    "exit_text": "import sys; sys.exit('a reason')",
    "exit_object": "raise SystemExit(['a', 1])",
    "exit_os": "import os; print('lost?', flush=True); os._exit(7)",
    "error": "def f():\n    return 1 / 0\n\nf()\n",
    "error_chain": "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('bad') from e\n",
    "error_group": "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])" if sys.version_info >= (3, 11) else "1/0",
    "error_context": "try:\n    1/0\nexcept ZeroDivisionError:\n    raise RuntimeError('second')",
    "excepthook": "import sys\nsys.excepthook = lambda t, v, tb: print('hook', t.__name__, tb.tb_lineno, sys.last_value)\n1/0",
    "last_value_unset": "import sys; print(hasattr(sys, 'last_value'), hasattr(sys, 'last_exc'), sys.exc_info())",
    "unraisable": "class C:\n    def __del__(self): 1/0\nC()\nprint('on')",
    "interrupt": "raise KeyboardInterrupt",
    "interrupt_signal": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import os; print('x', flush=True); os.abort()",
    "syntax": "print('never')\nif True\n    pass\n",
    "indentation": "def f():\nreturn 1\n",
    "nul": "print(1)\0\n",
    "latin": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n",
    "unknown_coding": b"# -*- coding: klingon -*-\nprint(1)\n",
    "bom": b"\xef\xbb\xbfprint('bom')\n",
    "not_utf8": b"print('\xe9')\n",
    "crlf": b"x = 1\r\nprint(x)\r\n",
    "empty": "",
    "unicode": "print('h\u00e9llo \u2603 \U0001f600', '\\udce9')",
    "binary_out": "import sys; sys.stdout.buffer.write(bytes(range(256)))",
    "atexit": "import atexit, sys\natexit.register(print, 'first')\natexit.register(lambda: sys.stderr.write('second'))",
    "atexit_error": "import atexit\natexit.register(lambda: 1/0)",
    "threads": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('joined'))).start()\nprint('main')",
    "thread_error": "import threading\ndef boom(): 1/0\nt = threading.Thread(target=boom, name='T'); t.start(); t.join()",
    "main_thread": "import threading; print(threading.current_thread() is threading.main_thread(), threading.active_count())",
    "globals_closed": "f = open('left.txt', 'w'); f.write('buffered')",
    "deleted_late": "class C:\n    def __del__(self): print('deleted')\nc = C()",
    "flush_fails": "import os, sys\nprint('x', end='')\nos.close(1)",
    "broken_pipe": "import os, signal\nr, w = os.pipe(); os.close(r)\ntry:\n    os.write(w, b'x')\nexcept BrokenPipeError: print('EPIPE')",
    "sibling": "import sibling; print(sibling.VALUE, sibling.__file__ == __file__.replace('sibling_user', 'x') or True)",
    "sibling_package": "from package.deep import thing; print(thing())",
    "source": "import inspect, sys\ndef f():\n    return 'mine'\nprint(inspect.getsource(f)); print(len(inspect.getsource(sys.modules['__main__'])))",
    "pickle": "import pickle\nclass C:\n    def __init__(self): self.a = 1\nprint(pickle.loads(pickle.dumps(C())).a, C.__module__)",
    "dataclass": "from dataclasses import dataclass\nfrom typing import get_type_hints\n@dataclass\nclass P:\n    x: 'int' = 1\nprint(P(), get_type_hints(P))",
    "annotations": "x: int = 1\nprint(__annotations__)",
    "multiprocessing_fork": "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    with m.get_context('fork').Pool(2) as p: print(p.map(f, [1, 2, 3]))",
    "multiprocessing_spawn": "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    with m.get_context('spawn').Pool(1) as p: print(p.map(f, [1, 2, 3]))",
    "futures": "from concurrent.futures import ProcessPoolExecutor\ndef f(x): return -x\nif __name__ == '__main__':\n    with ProcessPoolExecutor(1) as p: print(list(p.map(f, range(3))))",
    "subprocess": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True))\nsubprocess.run('echo shell', shell=True)",
    "popen_stdin": "import subprocess\np = subprocess.run(['cat'], input='abc', text=True)",
    "environment": "import os, subprocess\nprint(sorted(k for k in os.environ if k not in ('SKILLCELL_EVENTS', 'LC_CTYPE')), os.getcwd() == os.environ['PWD'])\nprint(subprocess.run(['sh', '-c', 'echo $ONLY'], capture_output=True).stdout, os.environ.get('ONLY'))",
    "umask": "import os; m = os.umask(0); print(oct(m))",
    "limits_recursion": "import sys; print(sys.getrecursionlimit())\ndef f(n): return n if n == 900 else f(n + 1)\nprint(f(0))",
    "recursion_error": "def f(): f()\ntry: f()\nexcept RecursionError as e: print(e)",
    "asyncio": "import asyncio\nasync def m():\n    await asyncio.sleep(0); print('async')\nasyncio.run(m())",
    "argparse_error": "import argparse\np = argparse.ArgumentParser(); p.add_argument('--n', type=int, required=True); p.parse_args([])",
    "argparse_help": "import argparse\np = argparse.ArgumentParser(description='d'); p.parse_args(['--help'])",
    "logging": "import logging; logging.basicConfig(format='%(levelname)s %(filename)s %(funcName)s %(lineno)d %(message)s'); logging.warning('w', stack_info=True)",
    "importlib": "import importlib; print(importlib.import_module('sibling').VALUE)",
    "runpy": "import runpy, os; print(runpy.run_path(os.path.join(os.path.dirname(__file__), 'sibling.py'))['VALUE'])",
    "locale": "import locale, time; print(locale.getpreferredencoding(), locale.setlocale(locale.LC_CTYPE), time.tzname)",
    "fs_encoding": "import sys; print(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding())",
    "gc": "import gc; print(gc.isenabled(), gc.get_threshold())",
    "trace": "import sys; print(sys.gettrace(), sys.getprofile(), sys.dont_write_bytecode)",
    "session": "import os; print(os.getpid() == os.getpgrp() == os.getsid(0))",
    "dumpable": "import os; print(os.stat('/proc/self').st_uid == os.getuid(), len(open('/proc/self/maps').read()) > 0)",
    "site": "import site, sys; print(site.getsitepackages(), site.ENABLE_USER_SITE, 'site' in sys.modules)",
    "faulthandler": "import faulthandler; print(faulthandler.is_enabled())\nimport sys; faulthandler.dump_traceback()",
    "modules_work": "import json, re, pathlib, subprocess, argparse, datetime, functools; print(json.loads('[1]'), re.sub('a', 'b', 'aa'), pathlib.Path('x') / 'y')",
}
ENVIRONMENTS = {
    "timezone": ("import time, datetime; print(time.tzname, time.timezone)", {"TZ": "Asia/Tokyo"}),
    "unbuffered": ("import sys; print(sys.stdout.write_through)", {"PYTHONUNBUFFERED": "1"}),
    "no_bytecode": ("import sys; print(sys.dont_write_bytecode)", {"PYTHONDONTWRITEBYTECODE": "1"}),
    "hash_seed": ("print(hash('a'))", {"PYTHONHASHSEED": "42"}),
    "optimize": ("assert False\nprint(__debug__)", {"PYTHONOPTIMIZE": "1"}),
    "io_encoding": ("import sys; print(sys.stdout.encoding, '\u00e9')", {"PYTHONIOENCODING": "latin-1"}),
    "warnings": ("import warnings; warnings.warn('w')", {"PYTHONWARNINGS": "error"}),
    "utf8": ("import sys; print(sys.flags.utf8_mode)", {"PYTHONUTF8": "1"}),
    "image_variable": ("import os; print(os.environ['PYTHON_VERSION'])", {"PYTHON_VERSION": "3.11.2"}),
    "posix_locale": ("import sys; print(sys.stdout.encoding, sys.stdout.errors)", {"LANG": "", "LC_ALL": "POSIX"}),
    "other_locale": ("import sys, locale; print(sys.stdout.encoding, locale.setlocale(locale.LC_CTYPE))", {"LANG": "C.UTF-8", "LC_ALL": "en_US.UTF-8"}),
}
# fmt: on


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("agent")
    agent = start_agent(directory)
    skill = Path(agent.places["skill"])
    (skill / "sibling.py").write_text("VALUE = 'beside'\n")
    (skill / "package").mkdir()
    (skill / "package" / "__init__.py").write_text("")
    (skill / "package" / "deep.py").write_text("from . import __name__ as n\ndef thing(): return n\n")
    yield agent
    assert agent.close() == 0


def compare(
    agent: Agent, name: str, source: str | bytes, **more: str
) -> tuple[Ending, subprocess.CompletedProcess[bytes]]:
    script = Path(agent.places["skill"], f"{name}.py")
    script.write_bytes(source if isinstance(source, bytes) else source.encode())
    env = agent.env(ONLY="here", PWD=agent.places["workspace"], **more)
    stdin = b"first\nsecond\r\n\xff"
    ours = agent.run(kind="python-script", script=str(script), argv=["-x", "a b"], env=env, stdin=stdin)
    plain = subprocess.run(
        [SYSTEM_PYTHON, str(script), "-x", "a b"],
        input=stdin,
        env={**env, "SKILLCELL_EVENTS": "x"},
        cwd=agent.places["workspace"],
        capture_output=True,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    return ours, plain


def assert_same(name: str, ours: Ending, plain: subprocess.CompletedProcess[bytes]) -> None:
    code = ours.code if ours.signal is None else -ours.signal
    found = (_without_addresses(ours.stdout), _without_addresses(ours.stderr), code)
    assert found == (_without_addresses(plain.stdout), _without_addresses(plain.stderr), plain.returncode), name


def _without_addresses(text: bytes) -> bytes:
    return re.sub(rb"0x[0-9a-f]{6,}", b"0x", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_not_tell_the_agent_from_python(agent: Agent, name: str) -> None:
    ours, plain = compare(agent, name, SCRIPTS[name])
    if name == "globals_closed":
        assert Path(agent.places["workspace"], "left.txt").read_text() == "buffered"
    assert_same(name, ours, plain)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_a_job_means_what_it_means_to_python(agent: Agent, name: str) -> None:
    source, env = ENVIRONMENTS[name]
    ours, plain = compare(agent, f"env_{name}", source, **env)
    assert_same(name, ours, plain)


def test_a_file_named_like_a_preloaded_module_wins_as_in_python(agent: Agent) -> None:
    shadow = Path(agent.places["skill"], "json.py")
    shadow.write_text("MINE = True\n")
    try:
        ours, plain = compare(agent, "shadowing", "import json; print(json.MINE)")
    finally:
        shadow.unlink()
    assert ours.stdout == b"True\n"
    assert_same("shadowing", ours, plain)


def test_pythonpath_entries_come_after_the_script_and_before_the_library(agent: Agent) -> None:
    extra = Path(agent.places["home"], "lib")
    extra.mkdir()
    (extra / "from_layer.py").write_text("WHERE = 'layer'\n")
    source = "import sys, from_layer; print(from_layer.WHERE, sys.path)"
    ours, plain = compare(agent, "layered", source, PYTHONPATH=f"{extra}:/nonexistent")
    assert_same("layered", ours, plain)


def test_a_script_that_is_missing_or_a_directory_ends_as_in_python(agent: Agent) -> None:
    Path(agent.places["skill"], "app").mkdir()
    Path(agent.places["skill"], "app", "__main__.py").write_text("print('main of a directory')")
    for name in ("absent.py", "app"):
        script = os.path.join(agent.places["skill"], name)
        ours = agent.run(kind="python-script", script=script)
        plain = subprocess.run(
            [SYSTEM_PYTHON, script], env=agent.env(), capture_output=True, cwd=agent.places["workspace"], check=False
        )
        assert_same(name, ours, plain)


def test_output_of_a_script_is_live(agent: Agent) -> None:
    script = Path(agent.places["skill"], "live.py")
    script.write_text("print('now')\ninput()\nprint('then')\n")
    agent.deliver(agent.job(kind="python-script", script=str(script), stdin=True))
    assert agent.wire.receive()[1] == b""
    assert agent.wire.receive()[1] == b"now\n"
    agent.feed(b"go\n")
    assert agent.collect().stdout == b"then\n"
