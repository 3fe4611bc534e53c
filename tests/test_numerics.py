"The switch for other roundings, and that `run.py test` uses it"
import importlib.util, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent

def load(file, name):
    spec = importlib.util.spec_from_file_location(name, ROOT/file); m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

@pytest.fixture(scope='module')
def numerics(): return load('tests/numerics/sitecustomize.py', 'numerics_')

def test_what_can_be_asked(numerics):
    assert numerics.parse('')=={} and numerics.parse('onednn, threads=2,nudge=1e-6')==dict(linear='onednn', threads=2, nudge=1e-6)
    for bad in ('mlk','nudge','threads=two','nudge=1e-6 draw=1'):
        with pytest.raises(ValueError): numerics.parse(bad)

CHILD = '''
import subprocess, sys
if len(sys.argv)<2: raise SystemExit(subprocess.run([sys.executable, __file__, 'child']).returncode)
import os, torch
from promptbench.train.tune import tune
from promptbench.model.backbone import load_backbone, random_backbone
from promptbench.base.catalogue import embedded
from safetensors.torch import load_file
a,b,plain = load_backbone('tiny').model.shared.weight,load_backbone('tiny').model.shared.weight,load_file(embedded('tiny')/'model.safetensors')['shared.weight'].float()
gap = (a/plain-1)[plain!=0].abs(); assert torch.equal(a, b) and 1e-4<gap.mean()<1e-2, gap.mean()
assert torch.get_num_threads()==2 and os.environ['PROMPTBENCH_LINEAR']=='mkl'
assert torch.equal(random_backbone().model.shared.weight, random_backbone().model.shared.weight)
'''

def test_processes_that_tests_start_get_it_too(numerics, tmp_path):
    (tmp_path/'go.py').write_text(CHILD); paths = [ROOT/'tests'/'numerics',ROOT]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)), **{numerics.NAME:'mkl,threads=2,nudge=1e-3'}); env.pop('PROMPTBENCH_LINEAR', None)
    subprocess.run([sys.executable, tmp_path/'go.py'], env=env, check=True)

@pytest.mark.parametrize('rest,codes,calls', [([], [0,0,0,0], 4), ([], [1,0,0,0], 4), ([], [0,0,1], 3), (['-k','suite'], [0,0], 2), ([], [0,1], 2)])
def test_run_py_ends_with_a_second_numerics(monkeypatch, rest, codes, calls, numerics):
    run,seen,left = load('run.py', 'run_'),[],list(codes)
    def call(*args):
        seen.append((args, os.environ.get(numerics.NAME)))
        return left.pop(0)
    monkeypatch.setattr(os, 'environ', dict(os.environ)); os.environ.pop(numerics.NAME, None); monkeypatch.setattr(run, 'call', call)
    assert run.test(rest)==codes[-1] and len(seen)==calls and not left
    if calls==4: assert seen[0][0][-2:]==('get','smollm2') and seen[2][1] is None and seen[3][1]==run.OTHER and numerics.parse(run.OTHER) and seen[3][0][-2:]==('-m','outcome and not slow')
