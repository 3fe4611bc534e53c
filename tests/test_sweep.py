"Sweeps: a thousand cells in a moment, failures that stop nobody else, nothing computed twice"
import json, subprocess, sys, time
from pathlib import Path
import pytest
from promptbench.base.core import UserError
from promptbench.cli.sweep import plan_text
from promptbench.engine.folder import list_runs, read_json
from promptbench.engine.grid import expand, time_estimate
from toy_sweep import complete, differences, table, write_page, write_sweep

ROOT = Path(__file__).resolve().parent.parent

def grid(folder, **more):
    for n in ('first','then'): write_page(folder/f'{n}.ipynb', work='')
    (folder/'s.yaml').write_text(json.dumps(dict(axes=dict(method=['none','T+P'], shots=[0,4]), seeds=2, steps=dict(first=dict(page='first.ipynb', skip=[dict(method='none')]), then=dict(page='then.ipynb', needs=dict(start='first'))))|more)); return folder/'s.yaml'

def test_one_pretraining_serves_many_tunings(tmp_path):
    runs = expand(grid(tmp_path)); first = [r for r in runs if r.cell['step']=='first']; then = [r for r in runs if r.cell['step']=='then']
    assert len(first)==2 and len(then)==8 and len({r.key for r in runs})==10
    assert [len(r.needs) for r in then]==[0]*4+[1]*4 and {k for r in then for k in r.needs}=={r.key for r in first}
    at = {r.key:i for i,r in enumerate(runs)}; assert all(at[k]<at[r.key] for r in runs for k in r.needs), 'a run stands before what it needs'

def test_keys_follow_what_matters(tmp_path):
    key = lambda **more: {str(r):r.key for r in expand(grid(tmp_path, **more))}
    a,b = key(),key(set=dict(steps=7)); assert a.keys()==b.keys() and not set(a.values()) & set(b.values()), 'another parameter is another run'
    assert key(name='other')==a and key(seeds=[1,0])=={k:a[k] for k in key(seeds=[1,0])}, 'names and order do not matter'
    steps = dict(first=dict(page='first.ipynb', skip=[dict(method='none')], set=dict(steps=9)), then=dict(page='then.ipynb', needs=dict(start='first'))); c = key(steps=steps)
    assert [k for k in a if a[k]!=c[k]]==[k for k in a if k.startswith('first') or 'T+P' in k], 'a run changes with what it starts from, others do not'

THEN = dict(then=dict(page='then.ipynb'))

@pytest.mark.parametrize('more,what', [
    (dict(axes=dict(metod=['a']), steps=THEN), "axis 'metod' must be a parameter"), (dict(axes=dict(method=[]), steps=THEN), 'one or more values'), (dict(exclude=[dict(shots=[0,4])]), 'the grid is empty'),
    (dict(exclude=[dict(shots=5)]), '5 must be one of the values of shots'), (dict(set=dict(lenght=3)), "set 'lenght' must be a parameter"), (dict(axes=dict(shots=['many']), steps=THEN), 'shots of page then must be int'),
    (dict(steps=dict(a=dict(page='nowhere'))), 'there is no page'), (dict(steps=dict(a=dict(page='then.ipynb', needs=dict(start='b')))), 'must need another step'),
    (dict(steps=dict(a=dict(page='then.ipynb', needs=dict(start='b')), b=dict(page='then.ipynb', needs=dict(start='a')))), 'in a circle'), (dict(steps=dict(a=dict(page='then.ipynb', needs=dict(begin='b')), b=dict(page='first.ipynb'))), "no parameter 'begin'"), (dict(seeds=True), 'seeds of a sweep must be')])
def test_mistakes_are_found_before_anything_starts(tmp_path, more, what):
    if 'steps' in more: more = dict(axes={})|more
    with pytest.raises(UserError, match=what): expand(grid(tmp_path, **more))

def test_a_thousand_cells_in_a_moment(tmp_path):
    file = grid(tmp_path, axes=dict(method=['none','T+P'], shots=[0,1,2,4,8], steps=[1,2,3,4,5]), seeds=20, include=[dict(method='x', start='', shots=1, steps=1)], steps=dict(then=dict(page='then.ipynb')))
    t = time.process_time(); runs = expand(file); said = plan_text(runs, tmp_path/'runs'); took = time.process_time()-t
    assert len(runs)==1020 and '1020 runs, 0 done, 1020 to do' in said and took<2, took

def test_estimates_come_from_earlier_runs(tmp_path):
    runs = expand(grid(tmp_path)); root = tmp_path/'runs'; assert 'no earlier run' in plan_text(runs, root)
    for i,(method,shots,spent) in enumerate([('T+P',4,40),('T+P',4,60),('none',4,500)]):
        f = root/f'old{i}'; f.mkdir(parents=True); (f/'card.json').write_text(json.dumps(dict(state='done', page='then', spent=spent, parameters=dict(method=method, shots=shots, seed=i, steps=6, start='run:x'))))
    took = {str(r):v for r,v in time_estimate(runs, root).items() for r in [next(q for q in runs if q.key==r)]}
    assert took['then method=T+P shots=4 seed=0']==50 and took['then method=none shots=4 seed=0']==500 and took['first method=T+P seed=0'] is None

def test_a_failure_stops_only_what_needs_it_and_nothing_is_computed_twice(tmp_path):
    file = write_sweep(tmp_path, text='name: toy\naxes: {method: [bad, T+P], shots: [0]}\nsteps:\n  first: {page: first.ipynb}\n  then: {page: then.ipynb, needs: {start: first}}\n'); root = tmp_path/'runs'
    code,said = complete(file, root); assert code==1, said
    assert '2 done, 1 failed, 1 skipped' in said and 'this method always fails' in said and 'needs failed first method=bad' in said, said
    assert len(table(root)[0])==1, 'rows of what was done are in the store'
    before = {r['key']:(r['folder']/'card.json').stat().st_mtime_ns for r in list_runs(root) if r['state']=='done'}; want = table(root)
    code,said = complete(None, root, '--resume'); assert code==1 and '(0 computed now, 2 before)' in said, said
    assert {k:(root/k/'card.json').stat().st_mtime_ns for k in before}==before and differences(table(root), want)==(0,0)

def test_sweeps_need_no_torch():
    code = "import sys, promptbench.cli.sweep, promptbench.engine.pools, promptbench.studies.collect; print([m for m in ('torch','transformers','submitit','papermill') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'

def test_the_example_is_a_table_in_small():
    runs = expand(ROOT/'nbs'/'runs'/'sweeps'/'table1_small.yaml'); assert len([r for r in runs if r.cell['step']=='pretrain'])==4 and len([r for r in runs if r.cell['step']=='tune'])==14
