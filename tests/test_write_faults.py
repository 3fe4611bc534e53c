"Killed in the middle of a write, or out of space from there on: the same call goes on to the same end; every write: PROMPTBENCH_TEST_FAULTS=all, or tests/faults/write_faults.py"
import json, os, subprocess, sys
from pathlib import Path
import pytest

SCRIPT = Path(__file__).resolve().parent/'faults'/'write_faults.py'
ALL = os.environ.get('PROMPTBENCH_TEST_FAULTS')=='all'

def faults(what:str, most:int)->dict:
    r = subprocess.run([sys.executable, str(SCRIPT), what, *([] if ALL else ['--most', str(most)])], capture_output=True, text=True, encoding='utf8')
    assert r.stdout, r.stderr[-2000:]
    return json.loads(r.stdout.splitlines()[-1])

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='faults are forked')

def test_pretraining_in_the_middle_of_a_write():
    got = faults('pretrain', 8); assert got['writes']>=30 and got['faults']>=8 and got['wrong']==[], got

@pytest.mark.slow
@pytest.mark.parametrize('what,most', [('table',8), ('sweep',2)])
def test_tables_and_sweeps_in_the_middle_of_a_write(what, most):
    got = faults(what, most); assert got['faults']>=most and got['wrong']==[], got
