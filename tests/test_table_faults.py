"A Table 1 that is hurt ends with the same rows, none lost, none computed twice; the whole suite is tests/faults/table_faults.py"
import os, sys
from pathlib import Path
import pytest
from promptbench.base.core import UserError
from promptbench.engine.folder import read_json
from promptbench.engine.pools import make_pool
from promptbench.studies.table1 import Settings, run_all
sys.path.insert(0, str(Path(__file__).resolve().parent/'faults')); import table_faults as F

FINE = dict(lost=0, wrong=0, twice=0)

def here(settings, out):
    "A table in this process, which keeps suites and backbones in memory between two calls"
    run_all(Settings(**settings), out, pool=make_pool('here'), quiet=True); return 0,''

@pytest.fixture(scope='module')
def place(tmp_path_factory): return F.Place(tmp_path_factory.mktemp('faults'), call=here)

def test_the_comparison_can_fail(place):
    rows,predictions = place.want; assert F.differences((rows, predictions), place.want)==(0,0) and len(rows)==8 and len(predictions)==64
    assert F.differences((rows[1:], predictions), place.want)==(1,0) and F.differences((rows.assign(value=rows.value+1e-9), predictions), place.want)==(0,8)
    before = F.finished(place.whole); card = place.whole/'jobs'/next(iter(before))/'card.json'; text = card.read_text(); card.write_text(text+' ')
    assert len(before)==5 and F.changed(place.whole, before)==1; card.write_text(text)

def test_a_lost_worker_costs_one_job_which_is_begun_again(place): assert F.lost_worker(place)==dict(faults=1)|FINE

def test_two_calls_share_the_work(place): assert F.two_calls(place)==dict(faults=1)|FINE

def test_what_was_edited_is_computed_anew_and_nothing_else(place): assert F.edited(place, here)==dict(faults=2)|FINE

def test_an_edit_between_plan_and_work_is_refused(place, tmp_path, monkeypatch):
    "Rows under a name that says something else would be worse than none; the same call again is planned anew"
    from promptbench.studies import table1
    settings = F.write_toy(tmp_path)|F.ALONE; f = tmp_path/'suite'/'signs'/'first'/'validation.jsonl'; planned = table1.jobs
    def late(s): made = planned(s); f.write_text(f.read_text().replace('"x": 3,', '"x": 5,', 1)); return made
    monkeypatch.setattr(table1, 'announce_tables', lambda *_: None); monkeypatch.setattr(table1, 'jobs', late)
    with pytest.raises(UserError, match='planned on files that were edited since; start the same call again'): here(settings, tmp_path/'out')
    assert F.cards(tmp_path/'out')=={}
    monkeypatch.undo(); here(settings, tmp_path/'out'); assert len(F.finished(tmp_path/'out'))==2

@pytest.mark.slow
def test_killed_at_random_moments(place): assert F.kills(place, 2)==dict(faults=2)|FINE

HERE = ('kills','lost_worker','two_calls','edited') # tested above
LONG = ('disk_full','clock_jump','ctrl_c_twice') # by hand: PROMPTBENCH_TEST_FAULTS=all, or tests/faults/table_faults.py

def fault(name): return pytest.param(name, marks=pytest.mark.skipif(name in LONG and os.environ.get('PROMPTBENCH_TEST_FAULTS')!='all', reason='run by hand: PROMPTBENCH_TEST_FAULTS=all'))

@pytest.mark.slow
@pytest.mark.parametrize('name', [fault(n) for n in F.FAULTS if n not in HERE])
def test_other_faults(place, name): got = F.FAULTS[name](place); assert got['faults']>=1 and {k:got[k] for k in FINE}==FINE
