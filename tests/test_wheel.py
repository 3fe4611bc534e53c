"""A package and not only a checkout: the wheel is built, installed where the checkout cannot be seen, and used there.

Its dependencies are installed by reference: a line in the new environment names the folder where this interpreter has
them. Such a line makes nothing of an editable promptbench that is registered in that folder."""
import ast, hashlib, importlib.metadata, importlib.util, json, os, shutil, signal, subprocess, sys, sysconfig, tarfile, venv, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

def here(*args, cwd=ROOT)->str:
    "What this interpreter prints, where a build may see nothing but `cwd`"
    env = {k:v for k,v in os.environ.items() if k!='PYTHONPATH'}
    r = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    return r.stdout

def has_setuptools()->bool:
    "One that knows the pyproject.toml of today and can make a wheel by itself"
    try: return int(importlib.metadata.version('setuptools').split('.')[0])>=77
    except importlib.metadata.PackageNotFoundError: return False

def build(what:str, to:Path, source:Path=ROOT)->Path:
    "Call the build backend as pip does; skip where it cannot be had"
    if not has_setuptools(): pytest.skip('a build without network needs setuptools 77 or newer in this environment')
    to.mkdir(parents=True, exist_ok=True)
    name = here('-c', f'from setuptools.build_meta import *; print("built:"+build_{what}({str(to)!r}))', cwd=source).rsplit('built:', 1)[1].strip()
    return to/name

def listing(root=ROOT)->list[str]:
    "Everything in the source tree that a build could have left"
    return sorted(p.name for p in root.iterdir())

def inside(wheel:Path)->list[str]: return sorted(n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n)

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    before,to = listing(),tmp_path_factory.mktemp('wheel')
    if has_setuptools() and importlib.util.find_spec('pip'):
        here('-m','pip','wheel','-q','--no-deps','--no-build-isolation','--no-cache-dir','--disable-pip-version-check','-w',to,'.')
        made, = to.glob('*.whl')
    else: made = build('wheel', to)
    assert listing()==before
    return made

# --- what is in it ---------------------------------------------------------------------------------------------------
def test_the_wheel_brings_code_data_pages_and_lessons_and_is_small(wheel):
    names = inside(wheel)
    assert wheel.stat().st_size<=25*2**20
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT/'promptbench').rglob('*.py')}
    assert {n for n in names if n.endswith('.py')}==modules and 'promptbench/py.typed' in names and 'promptbench/__main__.py' in names
    for folder in ('data','nbs/runs','nbs/lessons'):
        files = [p.relative_to(ROOT) for p in (ROOT/folder).rglob('*') if p.is_file()]
        ours = {p.as_posix() for p in files if not any(x.startswith(('.','__')) for x in p.parts) and p.parts[:2]!=('data','pictures')}
        assert ours and {n.removeprefix('promptbench/_files/') for n in names if n.startswith(f'promptbench/_files/{folder}/')}==ours
    assert not [n for n in names if not n.startswith('promptbench/')]

def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    before = listing(); archive = build('sdist', tmp_path/'sdist'); assert listing()==before
    with tarfile.open(archive) as t: t.extractall(tmp_path/'source', filter='data')
    source, = (tmp_path/'source').iterdir()
    assert inside(build('wheel', tmp_path/'again', source))==inside(wheel)

def test_an_editable_install_copies_nothing(tmp_path):
    before = listing(); made = build('editable', tmp_path); assert listing()==before
    assert not [n for n in inside(made) if '_files' in n or n.startswith('promptbench/')]

def test_modules_fit_the_newest_python_that_is_promised():
    "The syntax of 3.11 without a warning, and nothing that 3.12 or 3.13 have removed; these two are not tried here"
    here('-W','error','-c', "import pathlib\nfor p in pathlib.Path('promptbench').rglob('*.py'): compile(p.read_text(encoding='utf8'), str(p), 'exec')")
    gone = set('aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis nntplib ossaudiodev pipes sndhdr smtpd spwd sunau telnetlib uu xdrlib'.split())
    for p in (ROOT/'promptbench').rglob('*.py'):
        nodes = list(ast.walk(ast.parse(p.read_text(encoding='utf8'))))
        asked = {a.name.split('.')[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}|{n.module.split('.')[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        assert not asked & gone, p.name

# --- and used --------------------------------------------------------------------------------------------------------
class Place:
    "An environment with the wheel in it, and an empty folder to work in"
    def __init__(self, wheel:Path, top:Path):
        self.env,self.cwd = top/'env',top/'work'
        self.cwd.mkdir()
        venv.create(self.env, with_pip=False, symlinks=os.name!='nt')
        self.bin = self.env/('Scripts' if os.name=='nt' else 'bin')
        self.python = self.bin/('python.exe' if os.name=='nt' else 'python')
        self.site = Path(self.run('-c', "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        _install(wheel, self.python)
        theirs = dict.fromkeys([sysconfig.get_path('purelib'), sysconfig.get_path('platlib')])
        (self.site/'dependencies.pth').write_text('\n'.join(theirs))
        self.package = self.site/'promptbench'
        if os.name!='nt': self.lock(False)
    def lock(self, writable:bool):
        "Who is not root cannot write into the package at all"
        for p in [self.package, *self.package.rglob('*')]: p.chmod(p.stat().st_mode|0o200 if writable else p.stat().st_mode&~0o222)
    def environment(self, **more)->dict:
        drop = {'PYTHONPATH','PYTHONHOME','VIRTUAL_ENV','PROMPTBENCH_HOME','JUPYTER_TOKEN'}
        jupyter = Path(sys.prefix)/'share'/'jupyter'   # part of the dependencies: the pages of JupyterLab
        return {k:v for k,v in os.environ.items() if k not in drop}|dict(
            PYTHONDONTWRITEBYTECODE='1', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1', PYTHONUNBUFFERED='1',
            HOME=str(self.cwd.parent/'home'), XDG_CACHE_HOME=str(self.cwd.parent/'cache'), JUPYTERLAB_DIR=str(jupyter/'lab'), JUPYTER_PATH=str(jupyter))|more
    def run(self, *args, ok=True):
        r = subprocess.run([self.python, *map(str, args)], cwd=self.cwd, env=self.environment(), capture_output=True, text=True)
        if ok: assert r.returncode==0, r.stdout+r.stderr
        return r
    def promptbench(self, *args)->str:
        "What the console script prints"
        r = subprocess.run([self.bin/'promptbench', *map(str, args)], cwd=self.cwd, env=self.environment(), capture_output=True, text=True)
        assert r.returncode==0, r.stdout+r.stderr
        return r.stdout
    def fingerprint(self)->str:
        "Of everything in the folder of packages; compiled modules are Python's"
        h = hashlib.sha256()
        for p in sorted(self.site.rglob('*')):
            if '__pycache__' not in p.parts: h.update(f'{p.relative_to(self.site)}\0'.encode()+(p.read_bytes() if p.is_file() else b''))
        return h.hexdigest()

def _install(wheel:Path, python:Path):
    "By pip, or by uv where an environment was made by it"
    uv = shutil.which('uv')
    if importlib.util.find_spec('pip'): here('-m','pip','--python',python,'install','-q','--no-deps','--no-index','--disable-pip-version-check','--root-user-action','ignore',wheel)
    elif uv: subprocess.run([uv,'pip','install','-q','--no-deps','--no-index','--python',python,wheel], check=True)
    else: pytest.skip('neither pip nor uv is here to install the wheel')

@pytest.fixture(scope='module')
def place(wheel, tmp_path_factory):
    p = Place(wheel, tmp_path_factory.mktemp('installed')); before = p.fingerprint()
    yield p
    if os.name!='nt': p.lock(True)
    assert p.fingerprint()==before, 'something was written into the installed package'

def test_the_library_works_in_an_empty_folder(place):
    code = """
from promptbench.all import *
import promptbench, json
from promptbench.base.core import checkout, home
suite = load_suite('microworld'); backbone = load_backbone('tiny')
assert checkout() is None
rows,_ = evaluate(backbone, suite.tasks(dataset='entail')[:1], suite=suite, method='none', n=8)
print(json.dumps(dict(file=promptbench.__file__, home=str(home()), rows=len(rows), claims=len(load_claims()), tasks=len(suite.tasks()))))
"""
    said = json.loads(place.run('-c', code).stdout.splitlines()[-1])
    assert Path(said['file']).is_relative_to(place.site) and Path(said['home']).is_relative_to(place.package)
    assert said['rows'] and said['claims']>=40 and said['tasks']
    assert list(place.cwd.iterdir())==[]

def test_the_version_is_the_one_of_the_settings(place):
    import promptbench
    assert place.promptbench('--version').strip()==f'promptbench {promptbench.__version__}'==place.run('-m','promptbench','--version').stdout.strip()

def test_small_commands(place):
    told = place.promptbench('doctor'); assert str(place.package) in told and 'BAD' not in told and str(place.cwd.parent/'cache') in told
    assert 'entail' in place.promptbench('show','microworld','entail')
    assert 'would run tune method=T+P' in place.promptbench('sweep','table1_small','--dry-run')

def test_table1_quick_and_arg(place):
    said = place.promptbench('table1','--quick','--out','table')
    made = {p.name for p in (place.cwd/'table').iterdir()}
    assert {'table1.csv','report.html','rows.parquet'}<=made, said
    assert 'T+P' in place.promptbench('arg','table')

def test_a_run_page(place):
    place.promptbench('run','tune','-p','steps','2')
    card = json.loads(next(place.cwd.glob('runs/*/card.json')).read_text())
    assert card['state']=='done' and card['commit'] is None   # no commit, whatever repository the environment lies in

def test_the_lab_opens_a_copy_of_the_lessons(place):
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    mine = place.cwd/'promptbench-lessons'/'1_words.ipynb'; mine.parent.mkdir(); mine.write_text('what I wrote')
    p = subprocess.Popen([place.bin/'promptbench','lab','2','--no-browser'], cwd=place.cwd, env=place.environment(SSH_CONNECTION=''), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    said = ''
    try:
        while 'Ctrl-C' not in said:
            line = p.stdout.readline(); assert line, said
            said += line
    finally: p.send_signal(signal.SIGTERM); p.wait(60)
    assert '/lab/tree/2_one_vector.ipynb?token=' in said and p.returncode==0
    lessons = {q.name for q in (ROOT/'nbs'/'lessons').glob('*.ipynb')}
    assert {q.name for q in mine.parent.glob('*.ipynb')}==lessons|{'1_words_new.ipynb'} and mine.read_text()=='what I wrote' and (mine.parent/'runs'/'table1.ipynb').is_file()
