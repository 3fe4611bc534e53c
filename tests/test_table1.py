"Table 1 survives: killed at any moment, it ends with the same numbers; what was finished stays untouched"
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pandas as pd, psutil, pytest
from promptbench.base.core import UserError
from promptbench.studies.table1 import Settings, finished, folder, gather, parts, run_all

SMALL = dict(scale='quick', methods=('none','T+P'), prompts=('shallow',), shots=(0,4), pretrain=dict(examples=512, batch_size=16), tune=dict(steps=4), n_eval=6, precision='fp32')
SCRIPT = '''
import sys
from promptbench.studies.table1 import Settings, run_all
if __name__=='__main__': run_all(Settings(**eval(sys.argv[1])), sys.argv[2], quiet=True)
'''

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole'); run_all(Settings(**SMALL), out, workers=1, quiet=True)
    return gather(Settings(**SMALL), out)

def start(script, out): return subprocess.Popen([sys.executable, str(script), repr(SMALL), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

def offspring(pid): return psutil.Process(pid).children(recursive=True)

def wait_for(what, process, seconds=240):
    for _ in range(seconds*20):
        if what(): return
        if process.poll() is not None: raise AssertionError(process.stderr.read().decode())
        time.sleep(.05)
    raise AssertionError('nothing happened')

def same(a, b):
    a,b = (x.sort_values([c for c in x.columns if c!='scores_sum' and c!='scores_mean']).reset_index(drop=True) for x in (a,b))
    pd.testing.assert_frame_equal(a, b, check_exact=True)

def test_killed_and_started_again_gives_the_same_numbers(undisturbed, tmp_path):
    s,out,script = Settings(**SMALL),tmp_path/'out',tmp_path/'go.py'; script.write_text(SCRIPT); jobs = parts(s)
    one = start(script, out)                                   # first kill: early, workers and all, whatever they are doing
    wait_for(lambda: (out/"progress.json").exists(), one)
    time.sleep(1.5); os.killpg(one.pid, signal.SIGKILL); one.wait()
    two = start(script, out)                                   # second kill: only the parent, when a cell is finished
    wait_for(lambda: any((out/'cells').glob('[!.]*/card.json')) if (out/'cells').exists() else False, two)
    workers = offspring(two.pid); os.kill(two.pid, signal.SIGKILL); two.wait(); assert not psutil.wait_procs(workers, timeout=120)[1]
    kept = {j: folder(out, s, j).stat().st_mtime_ns for j in jobs if finished(out, s, j)}
    assert kept, 'a finished cell must be kept'
    run_all(s, out, workers=2, quiet=True)
    assert {j: folder(out, s, j).stat().st_mtime_ns for j in kept}==kept, 'finished cells must not be touched'
    got = gather(s, out); same(got['rows'], undisturbed['rows']); same(got['predictions'], undisturbed['predictions'])
    assert not list((out/'checkpoints').glob('*.steps')), 'checkpoints of finished runs are removed'

def test_orphaned_workers_end(tmp_path):
    script = tmp_path/'go.py'; script.write_text(SCRIPT); p = start(script, tmp_path/'out'); wait_for(lambda: (tmp_path/'out'/'progress.json').exists() and offspring(p.pid), p)
    children = offspring(p.pid); os.kill(p.pid, signal.SIGKILL); p.wait()
    gone,alive = psutil.wait_procs(children, timeout=120)
    assert children and not alive, alive

def test_a_worker_that_dies_is_said_so(tmp_path):
    script = tmp_path/'go.py'; script.write_text(SCRIPT); p = start(script, tmp_path/'out')
    workers = lambda: [c for c in psutil.Process(p.pid).children() if 'spawn_main' in ' '.join(c.cmdline())]
    wait_for(lambda: (tmp_path/'out'/'progress.json').exists() and workers(), p); workers()[0].kill()
    _,err = p.communicate(timeout=240); assert p.returncode!=0 and b'a worker process died' in err, err[-500:]

def test_a_failing_part_does_not_stop_the_rest(tmp_path):
    s = Settings(**SMALL|dict(shots=(0,65), methods=('none',)))            # 64 examples to draw from
    with pytest.raises(UserError, match='none shallow 65-shot.*must have 65 training examples'): run_all(s, tmp_path, workers=1, quiet=True)
    assert [j.shots for j in parts(s) if finished(tmp_path, s, j)]==[0]
    with pytest.raises(UserError, match='1 cells are not computed yet'): gather(s, tmp_path)

def test_keys_change_with_what_matters():
    from promptbench.studies.table1 import key
    from dataclasses import replace
    s = Settings(**SMALL); pre = next(j for j in parts(s) if j.shots is None); cell = [j for j in parts(s) if j.shots==4][0]
    assert key(s, pre)==key(replace(s, tune=dict(steps=9)), pre), 'tuning does not matter to pretraining'
    assert key(s, cell)!=key(replace(s, tune=dict(steps=9)), cell)
    assert key(s, pre)!=key(replace(s, pretrain=dict(examples=256)), pre)
    assert key(s, pre)!=key(replace(s, precision='bf16'), pre)
    assert key(s, pre)!=key(replace(s, init='zeros'), pre) and key(s, pre)==key(replace(s, init=dict(deep='zeros')), pre), 'a start of another kind of prompt does not matter'
    assert len({key(replace(s, init=dict(shallow=i)), cell) for i in ('normal','small')})==2

def test_a_setting_for_one_kind_leaves_the_scale_to_the_other():
    from promptbench.studies.table1 import Part, _init_of, tune_settings
    s = Settings(tune=dict(lr=dict(shallow=.5)), init=dict(shallow='zeros')); own = Settings()
    at = lambda s,kind: (tune_settings(s, Part(0,'none',kind,16)), _init_of(s, kind))
    assert at(s,'deep')==at(own,'deep') and at(s,'shallow')==({**at(own,'shallow')[0], 'lr':.5}, 'zeros') and 'lr' in at(own,'deep')[0]

def test_prompts_start_where_the_settings_say(tmp_path):
    "Tuned by a step too small to matter: zeros and noise score differently, the same start scores the same; and the paper's scale has the paper's"
    from promptbench.studies.table1 import _init_of
    assert _init_of(Settings(scale='paper'), 'deep')=='paper' and _init_of(Settings(), 'deep')=='small' and _init_of(Settings(init='vocab'), 'shallow')=='vocab'
    scores = []
    for init in ('zeros','normal',dict(deep='normal')):
        s = Settings(**{**SMALL, 'methods':('none',), 'prompts':('deep',), 'shots':(4,), 'tune':dict(steps=1, lr=1e-9)}, init=init); out = tmp_path/str(len(scores)); run_all(s, out, workers=1, quiet=True); scores.append([list(x) for x in gather(s, out)['predictions'].scores_sum])
    assert scores[0]!=scores[1]==scores[2]
