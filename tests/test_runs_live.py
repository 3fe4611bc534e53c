"Run pages with real work: stopped by a signal and gone on with the same numbers; trackers"
import importlib.util, signal, time
import pytest
from promptbench.base.core import UserError
from promptbench.engine.folder import read_json, run_state
from promptbench.engine.pages import execute, run_key
from test_runs import cli, toy

def small(folder):
    "A backbone of seconds"
    from promptbench.model.backbone import random_backbone, save_backbone
    save_backbone(random_backbone(seed=1), folder/'bb'); return dict(backbone=str(folder/'bb'), method='T+P', prompt='deep', examples=3200, precision='fp32', every=1000)

def flat(given): return [x for k,v in given.items() for x in ('-p', k, str(v))]

def whole(given):
    "The same pretraining without a page, a kernel or a signal"
    from promptbench.model.backbone import load_backbone
    from promptbench.prompt.inits import new_prompt
    from promptbench.train.methods import method_config, run_method
    from promptbench.data.suite import load_suite
    b = load_backbone(given['backbone'], precision='fp32'); config = method_config('T+P', 'deep', examples=given['examples']); p = new_prompt('deep', b, length=config.length, seed=0)
    list(run_method(b, p, load_suite('microworld', seed=0).tasks(role='train'), config)); return b,p

def test_sigterm_writes_a_checkpoint_and_leaves_within_ten_seconds(tmp_path):
    from promptbench.model.backbone import weight_hashes
    from promptbench.prompt.checkpoint import last_step, load_checkpoint
    import torch
    given = small(tmp_path); key = run_key('pretrain', given); f = tmp_path/'runs'/key
    child = cli('run','pretrain',*flat(given),'--root',tmp_path/'runs','--quiet', wait=False); end = time.time()+120
    while (read_json(f/'progress.json') or {}).get('step', 0)<3: assert time.time()<end and child.poll() is None, child.communicate(); time.sleep(.02)
    child.send_signal(signal.SIGTERM); t = time.time(); out,err = child.communicate(timeout=60); took = time.time()-t
    assert child.returncode==143 and took<10, (child.returncode, took, out, err)
    assert 'same call goes on' in err and run_state(f)=='resumable' and last_step(f/'checkpoints') is not None, list(f.rglob('*'))
    done = int(last_step(f/'checkpoints').name[5:]); assert 3<=done<50
    again = execute('pretrain', given, root=tmp_path/'runs'); assert again.code==0, again.message
    b,prompt = whole(given); loaded = load_checkpoint(f/'checkpoints'/'final'); assert weight_hashes(loaded[0])==weight_hashes(b) and torch.equal(loaded[1].table, prompt.table), 'not the numbers of a run that nobody stopped'
    card = read_json(f/'card.json'); assert card['attempts']==2 and card['budget']['updates']==50 and card['budget']['examples']==3200 and not list((f/'checkpoints').glob('step-*'))

TRACKED = 'from promptbench.engine.inside import watched\nfor r in watched((dict(step=i, loss=1/(i+1), budget=dict(tokens=10*i)) for i in range(5)), 5, "toy"): pass'

def test_rows_go_to_tensorboard_when_asked_and_only_then(tmp_path):
    EventAccumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator').EventAccumulator
    p = toy(tmp_path, TRACKED); r = execute(p, {}, root=tmp_path/'plain'); assert r.code==0 and not (r.folder/'tracking').exists()
    r = execute(p, {}, root=tmp_path/'runs', track=('tensorboard',)); assert r.code==0, r.message
    files = list((r.folder/'tracking').rglob('events*')); assert files
    points = {}
    for f in files:
        a = EventAccumulator(str(f.parent)); a.Reload(); points |= {t:[(e.step, round(e.value, 4)) for e in a.Scalars(t)] for t in a.Tags()['scalars']}
    assert points['toy/loss']==[(i, round(1/(i+1), 4)) for i in range(5)] and points['toy/budget/tokens'][-1]==(4, 40.)
    if importlib.util.find_spec('wandb') is None:
        with pytest.raises(UserError, match='wandb, which is not installed; pip install wandb'): execute(p, {}, root=tmp_path/'x', track=('wandb',))

def test_a_table_asked_to_stop_begins_nothing_more(tmp_path, monkeypatch):
    from promptbench.base.stop import Stopped
    from promptbench.engine.pools import make_pool
    from promptbench.studies.table1 import Settings, run_all
    monkeypatch.setenv('PROMPTBENCH_STOP', str(tmp_path/'stop')); (tmp_path/'stop').touch()
    for pool in (make_pool('local', workers=2), make_pool('here')):
        with pytest.raises(Stopped, match='finished parts are kept'): run_all(Settings(scale='quick', methods=('none',), shots=(0,), precision='fp32'), tmp_path/'out', pool=pool)
        assert not list((tmp_path/'out'/'jobs').glob('*/card.json'))
