"""Collects nbs/*.ipynb beside tests/: one item per page, in one summary.

A page runs in this process with nbdev's directives obeyed, except that its exported cells are not executed: their
names come from the exported module. So the examples test the file that people import, and a module that lacks an
import fails here although its page would pass. Pages in a folder with a `.notest` are left out; a page with a cell
tagged `needs:smollm2`, or another name that `promptbench get` knows, is skipped where that was not fetched.

Tests must hold on any processor. PROMPTBENCH_TEST_NUMERICS=onednn,threads=2,nudge=1e-6 runs them with other roundings;
tests/numerics/sitecustomize.py says what can be asked. Tests whose verdict could hang on what a training run learned
carry the marker `outcome`; of the pages, those in OUTCOME have it. `run.py test` runs all these a second time so, but
for the slow ones. Assert on constructed rows, on equalities, or on what several seeds have in common; run a new one with
nudge=1e-3 and draw=0 to 4."""
import importlib, importlib.util, json, os, re, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent
EXPORT = {'export','exporti','exports'}
OUTCOME = {'60_train/02_fit','60_train/06_pretrain','60_train/07_meta','60_train/09_tune','75_world/04_backbone',
           '90_lab/03_diagnosis'}
sys.path.insert(0, str(ROOT/'tests'))   # so that tests can share helpers

def load_numerics():
    spec = importlib.util.spec_from_file_location('numerics', ROOT/'tests'/'numerics'/'sitecustomize.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
numerics = load_numerics()
NUMERICS = numerics.apply()   # before anything imports the package

def pytest_report_header(config): return f'numerics: {NUMERICS}' if NUMERICS else None

def pytest_runtest_setup(item): numerics.threads(NUMERICS)   # some tests set threads themselves and leave it so

def pytest_addoption(parser): parser.addoption('--nb-flags', default='', help='nbdev flags to run that are normally skipped, e.g. "slow"')

def pytest_collect_file(file_path, parent):
    wanted = file_path.suffix=='.ipynb' and ROOT/'nbs' in file_path.parents and not file_path.name.startswith(('_','.'))
    if wanted and not (file_path.parent/'.notest').exists(): return NbFile.from_parent(parent, path=file_path)

def solutions(nb):
    "Code of the hidden solutions of a lesson: they run after it, where a student would paste them"
    hidden = (d for c in nb.cells if c.cell_type=='markdown' for d in re.findall(r'<details>.*?</details>', c.source, re.S))
    return [code for d in hidden for code in re.findall(r'^```python\n(.*?)^```', d, re.M|re.S)]

def needed(path):
    "What a page needs that must be fetched, by the tags of its cells"
    tags = [t for c in json.loads(path.read_text(encoding='utf8'))['cells'] for t in c['metadata'].get('tags', [])]
    return [t.removeprefix('needs:') for t in tags if t.startswith('needs:')]

def lacks(path):
    "The sentence that says what a page needs and this machine has not; None where all is there"
    from promptbench.data.fetch import NotFetched, fetched
    try: [fetched(name) for name in needed(path)]
    except NotFetched as e: return str(e)

def run_page(path, skip_flags, force_flags):
    "Run a page; a traceback as text if it fails, else None"
    from execnb.nbio import mk_cell, new_nb
    from execnb.shell import CaptureShell
    from fastcore.utils import str2bool, working_directory
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(getattr(nb,'frontmatter_',{}).get('skip_exec', False)): return None
    flags = set(skip_flags)-set(force_flags)
    directives = lambda c: getattr(c,'directives_',{}) or {}
    name = next((directives(c)['default_exp'][0] for c in nb.cells if 'default_exp' in directives(c)), None)
    def skip(c):
        d = directives(c)
        return c.cell_type!='code' or 'nbdev_export(' in c.source or d.get('eval:',[''])[0].lower()=='false' or bool(flags & d.keys()) or (name is not None and bool(EXPORT & d.keys()))
    shell = CaptureShell(path)
    if name:
        module = importlib.import_module(f'{get_config().lib_path.name}.{name}')
        shell.user_ns.update({k:v for k,v in vars(module).items() if not k.startswith('__')})
    try:
        with working_directory(path.parent):
            shell.run_all(nb, exc_stop=True, preproc=skip)
            for code in solutions(nb): shell.run_all(new_nb([mk_cell(code)]), exc_stop=True)
    except Exception: return shell.prettytb(fname=path)

class NbError(Exception): "A page that failed; its text is the traceback"

class NbFile(pytest.File):
    def collect(self):
        item = NbItem.from_parent(self, name=self.path.stem)
        if '/'.join(self.path.with_suffix('').parts[-2:]) in OUTCOME: item.add_marker('outcome')
        yield item

class NbItem(pytest.Item):
    def runtest(self):
        from nbdev.config import get_config
        if missing := lacks(self.path): pytest.skip(missing)
        cwd,path,old = os.getcwd(),sys.path[:],os.environ.get('IN_TEST')
        os.chdir(ROOT); os.environ['IN_TEST'] = '1'; sys.path.insert(0, str(ROOT))
        try: failed = run_page(self.path.absolute(), get_config().tst_flags.split(), self.config.getoption('--nb-flags').split())
        finally:
            os.chdir(cwd); sys.path[:] = path
            os.environ.pop('IN_TEST') if old is None else os.environ.update(IN_TEST=old)
        if failed: raise NbError(failed)
    def repr_failure(self, excinfo, style=None): return str(excinfo.value) if isinstance(excinfo.value, NbError) else super().repr_failure(excinfo)
    def reportinfo(self): return self.path, 0, f'page {self.path.relative_to(ROOT)}'
