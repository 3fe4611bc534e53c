"Table 1 survives: killed at any moment, it ends with the same numbers; what was finished stays untouched; names change with what matters"
import json, os, signal
from dataclasses import replace
import psutil, pytest
from keep_table import keep
from promptbench.base.core import UserError
from promptbench.engine.folder import read_json
from promptbench.engine.job import is_done
from promptbench.engine.pools import make_pool
from promptbench.studies.study import jobs_in
from promptbench.studies.table1 import Settings, finish, finished, gather, init_of, jobs, run_all, tune_settings
from toy_sweep import differences
from toy_table import Table, changed, table, finished as cards_done

SMALL = dict(scale='quick', methods=('none','T+P'), prompts=('shallow',), shots=(0,4), pretrain=dict(examples=512, batch_size=16), tune=dict(steps=4), n_eval=6, precision='fp32')

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "One job after another in this process, where each finds what the one before it loaded"
    out = tmp_path_factory.mktemp('whole'); run_all(Settings(**SMALL), out, pool=make_pool('here'), quiet=True)
    return out

def test_killed_and_started_again_gives_the_same_numbers(undisturbed, tmp_path):
    s,out = Settings(**SMALL),tmp_path/'out'
    with Table(SMALL, out) as one:                             # first kill: early, workers and all, whatever they are doing
        one.wait(lambda: [f for f in (out/'jobs').glob('pretrain-*/progress.json')])
        os.killpg(one.process.pid, signal.SIGKILL); one.process.wait(); assert one.gone(), one.family()
    with Table(SMALL, out) as two:                             # second kill: only the parent, when a cell is finished
        two.wait(lambda: two.workers() and cards_done(out)); workers = two.workers()
        two.kill(); assert workers and not psutil.wait_procs(workers, timeout=120)[1] and two.gone(), two.family()
    kept = cards_done(out); assert kept and len(kept)<5, 'a finished cell must be kept'
    run_all(s, out, workers=2, quiet=True)                     # and in another kind of pool than the undisturbed one
    assert changed(out, kept)==0, 'finished cells must not be touched'
    assert differences(table(SMALL, out), table(SMALL, undisturbed))==(0,0) and finished(s, out)
    assert not list((out/'jobs').glob('*/checkpoints/step-*')), 'checkpoints of finished runs are removed'

def test_a_finished_table_is_not_computed_again(undisturbed):
    kept = cards_done(undisturbed); run_all(Settings(**SMALL), undisturbed, pool=None, quiet=True)
    assert len(kept)==5 and changed(undisturbed, kept)==0

def test_a_table_can_be_kept(undisturbed, tmp_path):
    finish(Settings(**SMALL), undisturbed, n=50); keep(undisturbed, tmp_path/'kept')
    assert {f.name for f in (tmp_path/'kept').iterdir()}=={'rows.parquet','table1.csv','claims.csv','claims_seed0.csv','settings.json'}
    assert json.loads((tmp_path/'kept'/'settings.json').read_text())['n_eval']==6

def test_a_failing_part_does_not_stop_the_rest(tmp_path):
    s = Settings(**SMALL|dict(shots=(0,65), methods=('none',)))            # 64 examples to draw from
    with pytest.raises(UserError, match='method=none prompt=shallow shots=65.*must have 65 training examples'): run_all(s, tmp_path, workers=1, quiet=True)
    assert [j.cell['shots'] for j in jobs(s) if is_done(j, jobs_in(tmp_path))]==[0] and not finished(s, tmp_path)
    with pytest.raises(UserError, match='1 cells are not computed yet'): gather(s, tmp_path)
    (failed,) = [c for f in jobs_in(tmp_path).glob('tune-*/card.json') for c in [read_json(f)]]
    assert failed['state']=='failed' and failed['attempts']==1 and '65 training examples' in failed['message'], 'it would fail again, so it is not begun again'

def test_keys_change_with_what_matters():
    s = Settings(**SMALL)
    def keys(**more):
        made = jobs(replace(s, **more)); at = lambda stage, **cell: next(j.key for j in made if j.stage==stage and cell.items()<=j.cell.items())
        return at('pretrain'), at('tune', method='none'), at('tune', method='T+P'), at('evaluate', method='T+P'), at('evaluate', method='none')
    pre,bare,cell,ranked,backbone = own = keys()
    assert len(set(own))==5 and keys()==own
    changed_in = lambda **more: [a!=b for a,b in zip(own, keys(**more))]
    assert changed_in(tune=dict(steps=9))==[False,True,True,False,False], 'tuning does not matter to pretraining'
    assert changed_in(pretrain=dict(examples=256))==[True,False,True,True,False], 'what starts from it changes with it, the rest does not'
    assert changed_in(precision='bf16')==[True]*5 and changed_in(n_eval=5)==[True]*5   # the draw of the world too
    assert changed_in(init='zeros')==[True,True,True,True,False] and not any(changed_in(init=dict(deep='zeros'))), 'a start of another kind of prompt does not matter'
    assert changed_in(slots=2)==[False]*5, 'how many processes compute a run is no part of its name'
    assert len({keys(init=dict(shallow=i)) for i in ('normal','small')})==2

def test_a_setting_for_one_kind_leaves_the_scale_to_the_other():
    s = Settings(tune=dict(lr=dict(shallow=.5)), init=dict(shallow='zeros')); own = Settings()
    at = lambda s,kind: (tune_settings(s, kind), init_of(s, kind))
    assert at(s,'deep')==at(own,'deep') and at(s,'shallow')==({**at(own,'shallow')[0], 'lr':.5}, 'zeros') and 'lr' in at(own,'deep')[0]

def test_prompts_start_where_the_settings_say(tmp_path):
    "Tuned by a step too small to matter: zeros and noise score differently, the same start scores the same; and the paper's scale has the paper's"
    assert init_of(Settings(scale='paper'), 'deep')=='paper' and init_of(Settings(), 'deep')=='small' and init_of(Settings(init='vocab'), 'shallow')=='vocab'
    scores = []
    for init in ('zeros','normal',dict(deep='normal')):
        s = Settings(**{**SMALL, 'methods':('none',), 'prompts':('deep',), 'shots':(4,), 'tune':dict(steps=1, lr=1e-9)}, init=init); out = tmp_path/str(len(scores)); run_all(s, out, pool=make_pool('here'), quiet=True); scores.append([list(x) for x in gather(s, out)['predictions'].scores_sum])
    assert scores[0]!=scores[1]==scores[2]
