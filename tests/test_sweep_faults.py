"A sweep that is hurt ends with the same table; the whole suite is tests/faults/sweep_faults.py"
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parent/'faults')); import sweep_faults as F

@pytest.fixture(scope='module')
def place(tmp_path_factory): return F.Place(tmp_path_factory.mktemp('faults'))

def test_the_comparison_can_fail(place):
    rows,predictions = place.want; assert F.differences((rows, predictions), place.want)==(0,0) and len(rows)==4 and len(predictions)==64
    assert F.differences((rows[1:], predictions), place.want)==(1,0) and F.differences((rows.assign(value=rows.value+1e-9), predictions), place.want)==(0,4)

def test_killed_at_random_moments(place): assert F.kills(place, 3)==dict(faults=3, lost=0, wrong=0)

@pytest.mark.slow
@pytest.mark.parametrize('name', ['ctrl_c_twice','bit_flip'])
def test_other_faults(place, name): got = F.FAULTS[name](place); assert got['faults']>=1 and got['lost']==got['wrong']==0
