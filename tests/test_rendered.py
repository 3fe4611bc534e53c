"""The cache of rendered tasks: the same ids as without it, whole or absent whatever dies, never in the way of a second builder"""
import multiprocessing, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
import rendered_cell as small
from promptbench.train import rendered as page
from promptbench.base.core import UserError
from promptbench.train.mixing import mix
from promptbench.train.rendered import MixedPairs, cached, clear_cache, in_processes, rendered
from promptbench.data.suite import Dataset, Suite
from promptbench.data.templates import Template
from test_pretrain import WORDS, cell, suite

HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path): monkeypatch.setenv('PROMPTBENCH_QUIET', '1'); monkeypatch.setenv('PROMPTBENCH_CACHE', str(tmp_path/'cache'))

@pytest.fixture(scope='module')
def backbone(): return cell('T+P','shallow')[0]

def tasks(): return suite().tasks('train')
def hidden(folder): return [p.name for p in folder.rglob('.*') if p.name!='.promptbench.json']

# --- what is kept ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('workers', [0,1,3])
def test_the_same_ids_as_without(tmp_path, backbone, workers, monkeypatch):
    monkeypatch.setattr(page, 'PART', 7); s = rendered(tasks(), backbone, folder=tmp_path, workers=workers); n = 0
    for t in tasks():
        want = backbone.pairs(t.examples('train')); assert s.sizes[t.name]==len(want) and s.pairs(range(n, n+len(want)))==want
        assert s.lengths(range(n, n+len(want)))[1].tolist()==[len(u) for _,u in want]; n += len(want)
    assert len(s)==n and not hidden(tmp_path) and len(list(tmp_path.rglob('*.arrow')))==sum(-(-t.size('train')//7) for t in tasks())

def test_rows_that_the_template_skips(tmp_path, backbone):
    t = next(t for t in tasks() if t.name=='skips/half'); s = rendered(tasks(), backbone, folder=tmp_path); a = s.first[s.names.index(t.name)]
    assert s.sizes[t.name]==15 and list(s.in_rows(t.name, [0,1,2,3,29]))==[a,a+1,a+14]

def test_wide_vocabularies(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(type(backbone), 'vocab', 70_000); s = rendered(tasks(), backbone, folder=tmp_path); assert s._parts[0][2].dtype==np.int32 and s.pairs([0])==backbone.pairs(tasks()[0].examples('train', 1))

def test_everything_counts(tmp_path, backbone):
    "Another record, template, cut, split or tokenizer is another folder; another backbone with the same tokenizer is not"
    def one(record='red', text='say {{x}} ||| {{x}}', **how):
        return rendered(Suite('s', [Dataset('d','c','train', dict(train=[dict(x='blue')]*3+[dict(x=record)], extra=[dict(x='red')]*4), [Template('t', text)])]).tasks(), how.pop('b', backbone), folder=tmp_path, **how).key
    from promptbench.model.backbone import random_backbone
    first = one(); assert one()==first==one(b=random_backbone(WORDS, seed=9))
    others = [one('green'), one(text='say {{x}} ||| no'), one(max_source=2), one(max_target=1), one(split='extra'), one(b=random_backbone(WORDS[:-1], seed=0)), one(b=replace(backbone, eos_source=False))]
    assert len({first,*others})==8

def test_code_counts(tmp_path, backbone, monkeypatch):
    first = rendered(tasks(), backbone, folder=tmp_path).key; monkeypatch.setattr(page, '_code', lambda: 'other'); assert rendered(tasks(), backbone, folder=tmp_path).key!=first

def test_it_is_not_made_twice(tmp_path, backbone, monkeypatch):
    first = rendered(tasks(), backbone); monkeypatch.setattr(page, '_build', lambda *a: pytest.fail('made again')); assert rendered(tasks(), backbone).key==first.key
    assert cached()[0]['bytes']>0 and {r['task'] for r in cached()}=={t.name for t in tasks()} and Path(os.environ['PROMPTBENCH_CACHE'], 'rendered').is_dir()

def test_damage_is_said_or_mended(tmp_path, backbone):
    rendered(tasks(), backbone, folder=tmp_path); file = sorted(tmp_path.rglob('*.arrow'))[0]; file.unlink(); rendered(tasks(), backbone, folder=tmp_path); assert file.exists()
    n = file.stat().st_size; file.write_bytes(file.read_bytes()[:n//2]); rendered(tasks(), backbone, folder=tmp_path); assert file.stat().st_size==n   # cut short
    file.write_bytes(b'x'*n)
    with pytest.raises(UserError, match='must be an Arrow file.*remove the folder'): rendered(tasks(), backbone, folder=tmp_path)

def test_clearing(tmp_path, backbone):
    s = rendered(tasks(), backbone, folder=tmp_path); before = s.pairs([0,50]); old = sorted(tmp_path.rglob('card.json'))[0]; os.utime(old, (1,1))
    assert clear_cache(tmp_path, days=30)>0 and len(cached(tmp_path))==len(tasks())-1; clear_cache(tmp_path); assert not cached(tmp_path) and s.pairs([0,50])==before

def test_user_mistakes(tmp_path, backbone):
    with pytest.raises(UserError, match='workers must be 0 or more'): rendered(tasks(), backbone, folder=tmp_path, workers=-1)
    (tmp_path/'file').write_text(''); 
    with pytest.raises(UserError, match='set PROMPTBENCH_CACHE'): rendered(tasks(), backbone, folder=tmp_path/'file')
    with pytest.raises(UserError, match='make it from store.sizes'): MixedPairs(rendered(tasks(), backbone, folder=tmp_path), mix(dict(a=3), seed=0))

# --- what dies -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('what,said', [('kill','signal SIGKILL'), ('exit','exit code 7'), ('raise','ZeroDivisionError')])
@pytest.mark.parametrize('workers', [1,2])
def test_a_worker_that_dies_is_an_error_that_names_the_task(tmp_path, monkeypatch, what, said, workers):
    monkeypatch.setattr(page, 'PART', 10); began = time.time()
    with pytest.raises(UserError, match=f'task bad/trap: .*{said}'): rendered(small.trapped(what), small.Stub(), folder=tmp_path, workers=workers)
    assert not hidden(tmp_path) and 'bad/trap' not in {r['task'] for r in cached(tmp_path)} and time.time()-began<30 and not multiprocessing.active_children()
    assert len(rendered(small.tasks(), small.Stub(), folder=tmp_path))==74   # and the rest is none the worse

def builder(folder, what='no'): return subprocess.Popen([sys.executable, str(HERE/'rendered_cell.py'), str(folder), what], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, PYTHONPATH=f'{HERE.parent}:{HERE}:{os.environ.get("PYTHONPATH", "")}'))
def alive(pids): return [p for p in pids if Path(f'/proc/{p}').exists() and ') Z' not in Path(f'/proc/{p}/stat').read_text()]

def test_two_builders_at_once(tmp_path):
    both = [builder(tmp_path) for _ in range(2)]; said = [p.communicate(timeout=120)[0].splitlines()[-1] for p in both]
    assert said[0]==said[1] and said[0].endswith(' 74') and [p.returncode for p in both]==[0,0] and not hidden(tmp_path) and len(cached(tmp_path))==4

def test_a_killed_builder_leaves_nothing_that_counts(tmp_path):
    "What it had finished stays, its lock is free, and the next builder sweeps up"
    p = builder(tmp_path, 'stop'); until = time.time()+90
    while time.time()<until and len(cached(tmp_path))<4: time.sleep(.05)
    file = Path(f'/proc/{p.pid}/task/{p.pid}/children'); mine = [int(x) for x in file.read_text().split()] if file.exists() else []
    p.kill(); p.wait(); p.stdout.close(); assert hidden(tmp_path) and {r['task'] for r in cached(tmp_path)}=={t.name for t in small.tasks()}
    for c in alive(mine): os.kill(c, signal.SIGKILL)   # one of them sleeps in its template for a minute, and holds the lock as long as it does
    assert len(rendered(small.tasks(), small.Stub(), folder=tmp_path))==74
    rendered(small.tasks(26), small.Stub(), folder=tmp_path); assert not hidden(tmp_path)

def test_idle_workers_see_that_their_master_is_gone():
    code = "import os\nfrom promptbench.train.rendered import in_processes\ng = in_processes(range(2), lambda n: os.getpid(), workers=2, name=str)\nprint(next(g)[1], next(g)[1], flush=True); os.kill(os.getpid(), 9)\n"
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, timeout=60, env=dict(os.environ, PYTHONPATH=str(HERE.parent))); pids = [int(x) for x in r.stdout.split()]; until = time.time()+20
    while alive(pids) and time.time()<until: time.sleep(.05)
    assert pids and not alive(pids), r.stderr

def test_results_come_whatever_the_number_of_workers():
    for w in (0,1,4): assert sorted(in_processes(range(9), lambda n: n*n, workers=w, name=str))==[(n,n*n) for n in range(9)]
    g = in_processes(range(9), lambda n: n, workers=2, name=str); next(g); g.close(); assert not multiprocessing.active_children()   # stopped half-way
