"""Python processes that begin with the libraries loaded: forks of one process that has imported them, and nothing of
this library. Loading torch, torchvision and scikit-learn takes four seconds; a fork takes none.

`Nursery` holds that process; with its `environment` Jupyter starts kernels there. By hand:

    python tools/warm.py PLACE                           serve at the socket PLACE until standard input closes
    python -S -E tools/warm.py PLACE -m MODULE [ARG...]  run a module there; where nobody serves, by Python itself
    python -S -E tools/warm.py PLACE -c CODE [ARG...]    the same with code

It runs with the environment, the folder and the files of who asked, in a session of its own; signals are passed
on, and it ends when its caller does, which ends with its parent. Where variables that libraries read as they are
loaded differ, Python itself runs it."""
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

# Not what looks at the kernel or the environment as it is loaded (`NEVER`), nor what imports that.
LIBRARIES = '''numpy scipy.stats scipy.optimize scipy.spatial scipy.sparse.csgraph sklearn.cluster sklearn.datasets
    sklearn.decomposition sklearn.linear_model sklearn.metrics sklearn.neighbors torch torchvision torchvision.ops
    torchvision.transforms torchvision.transforms.v2 torch.distributed torch.utils.data PIL.Image pandas numba
    pyparsing kiwisolver contourpy dateutil IPython ipykernel.ipkernel ipywidgets nbformat nbclient
    jupyter_client.manager requests yaml'''.split()
NEVER = 'nmc_workbench', 'tqdm.auto', 'matplotlib', 'plotly.io', 'ipykernel.kernelapp'
READ_AT_ONCE = 'OMP_', 'MKL_', 'OPENBLAS_', 'NUMBA_', 'PYTHON', 'LD_'
PASSED_ON = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT


def early(env): return {k: v for k, v in env.items() if k.startswith(READ_AT_ONCE)}


# ---- the one that serves


def load():
    "Import the libraries that are installed."
    import importlib
    for name in LIBRARIES:
        try: importlib.import_module(name)
        except ImportError: pass
    assert not [m for m in NEVER if m in sys.modules], [m for m in NEVER if m in sys.modules]


def serve(place):
    "Fork for every caller until standard input closes; returns in the forks, with what they are asked to run."
    known = early(os.environ)
    load()                                      # some set variables of their own
    gc.freeze()                                 # no fork walks through all that the libraries made
    server = socket.socket(socket.AF_UNIX)
    server.bind(f'{place}.draft')
    server.listen(64)
    os.rename(f'{place}.draft', place)          # there only once it answers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([server, 0], [], [])
        if 0 in ready and not os.read(0, 1): return None
        if server not in ready: continue
        caller, _ = server.accept()
        if os.fork():
            caller.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        server.close()
        return answer(caller, known)


def answer(caller, known):
    "Read what is asked, and fork for it; the parent watches over it and exits, the child returns what to run."
    data, fds, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    while not data.endswith(b'\n'): data += caller.recv(1 << 20)
    asked = json.loads(data)
    if early(asked['env']) != known:
        caller.sendall(b'cold\n')
        os._exit(0)
    pid = os.fork()
    if pid:
        for fd in fds: os.close(fd)
        watch(caller, pid)
        os._exit(0)
    caller.close()
    return asked, fds


def watch(caller, pid):
    "Pass the caller's signals on; end the child with the caller; tell the caller how the child ended."
    ended = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([caller, ended], [], [])
        if ended in ready: break
        told = caller.recv(1)
        try: os.killpg(pid, told[0] if told else signal.SIGKILL)
        except ProcessLookupError: pass
        if not told: return
    try: caller.sendall(f'{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n'.encode())
    except OSError: pass


def become(asked, fds):
    "Run the module as `python -m` does, or the code as `python -c` does."
    import runpy
    import numpy as np
    os.setsid()
    for i, fd in enumerate(fds):
        os.dup2(fd, i)
        os.close(fd)
    own = {k: v for k, v in early(os.environ).items() if k not in asked['env']}
    os.environ.clear()
    os.environ.update(own | asked['env'])
    os.chdir(asked['cwd'])
    np.random.seed()                            # forks do not share their numbers
    kind, what, *arguments = asked['words']
    sys.path[0] = asked['cwd'] if kind == '-m' else ''
    sys.argv = [what if kind == '-m' else '-c', *arguments]
    if kind == '-m': return runpy.run_module(what, run_name='__main__', alter_sys=True)
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    exec(compile(what, '<string>', 'exec'), vars(main))


# ---- the one that asks


def ask(place, *words):
    "Run a module or code at the nursery and end as it ends."
    caller = socket.socket(socket.AF_UNIX)
    try: caller.connect(place)
    except OSError: cold(words)
    asked = dict(words=words, env=dict(os.environ), cwd=os.getcwd())
    for s in PASSED_ON: signal.signal(s, lambda number, _: caller.sendall(bytes([number])))
    data = json.dumps(asked).encode() + b'\n'
    sent = socket.send_fds(caller, [data], [0, 1, 2])
    caller.sendall(data[sent:])
    told = listen(caller, os.getppid())
    if told == b'cold\n' or not told: cold(words)
    code = int(told)
    if code >= 0: os._exit(code)
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)


def listen(caller, parent):
    "What the nursery says at last; when the parent has ended meanwhile, so does this process."
    while not select.select([caller], [], [], 1)[0]:
        if os.getppid() != parent: os._exit(1)
    return caller.recv(100)


def cold(words): os.execv(sys.executable, [sys.executable, *words])


class Nursery:
    "The process that serves, in a folder; `environment` makes Jupyter, and the tests' `python`, start theirs there."

    def __init__(self, folder):
        self.place = Path(folder) / 'nursery'
        command = [sys.executable, __file__, str(self.place)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=folder)
        self.python = [sys.executable, '-S', '-E', __file__, str(self.place)]
        paths = [self.kernels(Path(folder) / 'jupyter'), os.environ.get('JUPYTER_PATH')]
        self.environment = dict(JUPYTER_PATH=os.pathsep.join(map(str, filter(None, paths))),
                                NMC_PYTHON='\n'.join(self.python))

    def kernels(self, folder):
        "A folder in which the kernel `python3` of this environment is started at the nursery."
        here = Path(sys.prefix) / 'share/jupyter/kernels/python3/kernel.json'
        spec = json.loads(here.read_text())
        spec['argv'] = [*self.python, *spec['argv'][1:]]
        out = folder / 'kernels/python3/kernel.json'
        out.parent.mkdir(parents=True)
        out.write_text(json.dumps(spec))
        return folder

    def wait(self, seconds=120):
        "Until it serves; callers that come earlier are run by Python itself."
        end = time.monotonic() + seconds
        while not self.place.exists() and self.process.poll() is None and time.monotonic() < end: time.sleep(.05)
        return self

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self): return self.wait()
    def __exit__(self, *_): self.close()


if __name__ == '__main__':
    if len(sys.argv) > 2: ask(*sys.argv[1:])
    elif job := serve(sys.argv[1]): become(*job)
