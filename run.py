#!/usr/bin/env python3
"""One command on a fresh machine, standard library only:

    python run.py demo [options of `promptbench table1`, e.g. --quick]   Table 1 on the embedded world, as a page to open
    python run.py lab [lesson] [--port N] [--reset lesson]                copies of the lessons in JupyterLab, on this machine
    python run.py test [options of pytest, e.g. -k suite]                notebooks and modules in step, then all tests;
                                                                     without options also some again with other roundings

Makes .venv beside this file (by uv if it is on PATH, else by venv and pip), installs the project with the versions
of constraints.txt, and runs. Nothing is installed again until pyproject.toml, constraints.txt or Python changes."""
import sys
if sys.version_info < (3, 11): sys.exit('promptbench needs Python 3.11 or newer, this is %d.%d (%s); run it as: python3.11 run.py ...' % (sys.version_info[:2]+(sys.executable,)))
import hashlib, os, shutil, signal, subprocess, time, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENV = ROOT/'.venv'
PY = ENV/('Scripts/python.exe' if os.name=='nt' else 'bin/python')
EXTRA = dict(demo='', lab='[lab]', test='[dev]')

def wanted():
    "What an installation depends on, as a hash"
    return hashlib.sha256(b'\0'.join([(ROOT/f).read_bytes() for f in ('pyproject.toml','constraints.txt')]+[sys.version.encode()])).hexdigest()

def make_env(uv):
    if PY.exists() and (uv or subprocess.run([PY,'-c','import pip'], capture_output=True).returncode==0): return
    if uv: subprocess.run([uv,'venv','-q','--clear',ENV,'--python',sys.executable], check=True)
    else: venv.create(ENV, with_pip=True, clear=True)

def install(extra, uv):
    "Install the project editable; the second q also drops pip's remarks about places without links, errors stay"
    env = dict(os.environ)
    if uv and env.get('PIP_FIND_LINKS'): env.setdefault('UV_FIND_LINKS', env['PIP_FIND_LINKS'])
    elif uv: env.setdefault('UV_TORCH_BACKEND', 'auto')   # the CPU build where there is no GPU
    how = [uv,'pip','install','-q','--python',PY] if uv else [PY,'-m','pip','install','-qq','--disable-pip-version-check','--no-input']
    subprocess.run([*how,'-c','constraints.txt','-e','.'+extra], check=True, cwd=ROOT, env=env)

def ensure(what):
    "An environment that fits `what`; a stamp is written last, so that a half-made one is made again"
    stamps = {w: ENV/('.installed-'+w) for w in EXTRA}; want = wanted()
    if any(stamps[w].exists() and stamps[w].read_text()==want for w in {what,'test'}): return
    t,uv = time.time(),shutil.which('uv')
    print('setting up %s: once, some minutes ...' % ENV, flush=True)
    try: make_env(uv); install(EXTRA[what], uv)
    except (subprocess.CalledProcessError, OSError) as e:
        sys.exit('\nrun.py: the set-up failed (%s).\nThe lines above say why. Usual causes: no package index can be reached, a full disk, or on Debian a missing python3-venv. Then remove %s and try again.' % (e, ENV))
    stamps[what].write_text(want)
    print('set up in %.0f s' % (time.time()-t), flush=True)

def command(*args, **more):
    "What subprocess needs for a command in the environment; `more` are variables for it"
    env = dict(os.environ, PYTHONUNBUFFERED='1', **more)
    for name,value in dict(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false').items(): env.setdefault(name, value)
    return dict(args=[str(a) for a in (PY,*args)], cwd=ROOT, env=env)

def call(*args): return subprocess.run(**command(*args)).returncode

def demo(rest):
    at = [i for i,a in enumerate(rest) if a.split('=')[0]=='--out']
    if not at: rest = ['--out','runs/demo',*rest]; at = [0]
    out = rest[at[-1]].partition('=')[2] or ''.join(rest[at[-1]+1:at[-1]+2])
    code = call('-m','promptbench.cli.main','table1',*rest); report = ROOT/out/'report.html'
    if code==0 and report.exists(): print('\nThe report is a page; open it in a browser:\n  '+str(report))
    return code

def lab(rest):
    signal.signal(signal.SIGINT, lambda *_: None)   # Ctrl-C is for the Lab, which needs a moment to end its server
    lab = command('-m','promptbench.cli.main','lab',*rest, PROMPTBENCH_LAB_KEPT='1')
    return subprocess.Popen(**lab, stdin=subprocess.PIPE).wait()   # the pipe ends with this process, and the Lab with it, also when this one is killed

OTHER = 'onednn,threads=2,nudge=1e-6'   # tests/numerics says what this asks for

def test(rest):
    os.environ['HF_HUB_OFFLINE'] = '1'   # a call to a hub must fail at once, here as on any machine
    spread = ['-n','2','--dist','loadfile'] if not rest and (os.cpu_count() or 1)>1 else []
    if not rest and call('-m','promptbench.cli.main','get','smollm2'): print('so the tests of a real model are skipped', flush=True)
    code = call('tests/sync_check.py') or call('-m','pytest',*spread,*rest)
    if code or rest: return code
    print('\nonce more with other roundings (%s): tests whose verdict could hang on a training run' % OTHER, flush=True)
    os.environ.update(PROMPTBENCH_TEST_NUMERICS=OTHER, OMP_WAIT_POLICY='PASSIVE')   # twice two threads share the cores: none may spin
    return call('-m','pytest',*spread,'-m','outcome and not slow')

if __name__=='__main__':
    what,*rest = sys.argv[1:] or ['']
    if what not in EXTRA: sys.exit(__doc__)
    ensure(what)
    try: code = dict(demo=demo, lab=lab, test=test)[what](rest)
    except KeyboardInterrupt: code = 130
    sys.exit(code)
