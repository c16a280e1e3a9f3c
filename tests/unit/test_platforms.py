"""Every module can be imported on a system without the modules and signals of POSIX.

On Windows `fit`, `serve` and `studio` once ended in `No module named 'fcntl'`.
"""

import subprocess
import sys

# The libraries support Windows by themselves. So all is imported once, with them; then ours is
# forgotten, what Windows lacks is hidden, and ours is imported again.
IMPORT_ALL = """
import importlib, os, pkgutil, signal, sys
import tessella

def import_all():
    package = importlib.import_module("tessella")
    names = [m.name for m in pkgutil.walk_packages(package.__path__, "tessella.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return names

first = import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "tessella"]:
    del sys.modules[name]
for name in {modules}:
    sys.modules[name] = None  # importing it is an ImportError now
for name in dir(signal):
    if name.startswith("SIG") and name not in {signals}:
        delattr(signal, name)
for name in {functions}:
    for module in (os, signal):
        if hasattr(module, name):
            delattr(module, name)
assert import_all() == first
print(len(first))
"""
POSIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
POSIX_FUNCTIONS = (
    "alarm",
    "chown",
    "fchmod",
    "fork",
    "forkpty",
    "geteuid",
    "getuid",
    "getpgid",
    "killpg",
    "mkfifo",
    "nice",
    "pthread_kill",
    "pthread_sigmask",
    "register_at_fork",
    "sched_getaffinity",
    "setitimer",
    "setsid",
    "siginterrupt",
    "sigwait",
    "sysconf",
    "uname",
    "wait4",
)
WINDOWS_SIGNALS = (
    "SIGABRT",
    "SIGFPE",
    "SIGILL",
    "SIGINT",
    "SIGSEGV",
    "SIGTERM",
    "SIG_DFL",
    "SIG_IGN",
)


def test_every_module_imports_without_what_windows_lacks() -> None:
    script = IMPORT_ALL.format(
        modules=(*POSIX_MODULES, "uvloop"), signals=WINDOWS_SIGNALS, functions=POSIX_FUNCTIONS
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90
