"The store and the queries over it: atomic, idempotent, consistent while writers and compactors work, closed to what SQL could do"
import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from promptbench.stats import results as R; from promptbench.stats import store as S
from promptbench.base.core import UserError, data_dir, write_atomic
from promptbench.stats.query import query, results
from promptbench.stats.scores import arg_scores, groups_named, intervals, read_scores

FAULTS = Path(__file__).parent/'faults'
sys.path.insert(0, str(FAULTS)); import two_writers

def made(method='m', seed=0, right=3, run='a', templates=2, n=4):
    row = dict(suite='toy', backbone='tiny', method=method, prompt='deep', shots=16, seed=seed, cluster='NLI', dataset='rte', run=run)
    rows = [row|dict(template=f't{t}', metric='accuracy', value=right/n, n=n, chance=.5, majority=.5) for t in range(templates)]
    ps = [row|dict(template=f't{t}', instance=f'rte/{k}', gold=0, pred=int(k>=right), correct=k<right, scores_sum=[-1.*k,-2.], scores_mean=[-.5*k,-1.]) for t in range(templates) for k in range(n)]
    return pd.DataFrame(rows),pd.DataFrame(ps)

@pytest.fixture(autouse=True)
def quick(monkeypatch): monkeypatch.setattr(os, 'fsync', lambda fd: None) # a killed process loses nothing that it wrote; a power cut is not what is tested here

@pytest.fixture
def store(tmp_path):
    for seed in range(4): S.append(tmp_path/'s', *made(seed=seed))
    return tmp_path/'s'

same = lambda a,b: pd.testing.assert_frame_equal(*(d.sort_values(R.KEY, ignore_index=True) for d in (a,b)))

# --- appending ---------------------------------------------------------------------------------------------------------
def test_two_writers_readers_kills_and_merging():
    r = subprocess.run([sys.executable, str(FAULTS/'two_writers.py'), '--sets', '30', '--kills', '4'], capture_output=True, text=True, timeout=400, env=dict(os.environ)|(dict(TMPDIR='/dev/shm') if os.path.isdir('/dev/shm') else {}))
    assert r.returncode==0, r.stderr[-3000:]
    got = json.loads(r.stdout.splitlines()[-1]); assert got['sets']==60 and got['kills']=={'writer':4,'compactor':4} and got['readings']>0

def test_the_reader_of_the_fault_test_would_notice(tmp_path):
    place = tmp_path; S.append(place/'store', *two_writers.result('steady', 0)); (place/'steady.ack').write_text('0\n'); assert two_writers.look(place, every=True)==1
    (place/'killed.ack').write_text('0\n')
    with pytest.raises(AssertionError, match='lost'): two_writers.look(place)
    (place/'killed.ack').unlink(); rows,ps = two_writers.result('steady', 1); S.append(place/'store', rows, ps[:-1])
    with pytest.raises(AssertionError, match='half a result set'): two_writers.look(place)

def test_same_content_twice_is_kept_once(store):
    before = sorted(os.listdir(store)); assert S.append(store, *made(seed=1, run='b')) is None; assert sorted(os.listdir(store))==before
    S.compact(store); assert S.append(store, *made(seed=1, run='b')) is None; assert len(R.read_rows(store))==8

@pytest.mark.parametrize('merged', [False,True])
def test_contradictions_name_both_runs_and_write_nothing(store, merged):
    if merged: S.compact(store)
    before = sorted(os.listdir(store)); rows,ps = made(seed=1, run='b')
    for r,p,words in [(*made(seed=1, right=2, run='b'), "rows must agree"), (rows, ps.assign(scores_sum=[[-9.,-2.]]*len(ps)), 'predictions must agree'), (rows.assign(majority=.75), ps, 'rows must agree')]:
        with pytest.raises(UserError) as e: S.append(store, r, p)
        for w in (words, "'a'", "'b'", "'seed': 1", 'nothing was written'): assert w in str(e.value), (w, str(e.value))
    assert sorted(os.listdir(store))==before

def test_only_what_is_new_is_added(store):
    rows,ps = made(seed=0, templates=3); part = S.append(store, rows, ps)
    assert R.read_rows(part).template.tolist()==['t2'] and set(R.read_predictions(part).template)=={'t2'}
    both = [pd.concat(x, ignore_index=True) for x in zip(made(seed=9), made('other', seed=9), made(seed=3))] # several cells at once, one of them known
    part = S.append(store, *both); assert part.name.startswith('many-') and len(R.read_rows(part))==4
    with pytest.raises(UserError, match='contradicts'): S.append(store, *made('other', seed=9, right=1))
    assert S.append(store, *both) is None

def test_rows_first_predictions_later(tmp_path):
    rows,ps = made(); S.append(tmp_path/'s', rows); S.append(tmp_path/'s', rows, ps); assert S.append(tmp_path/'s', rows, ps) is None
    assert S.compact(tmp_path/'s')==2 and len(R.read_predictions(tmp_path/'s'))==len(ps)

def test_refuses_what_is_no_store(tmp_path):
    (tmp_path/'x').write_text('mine')
    with pytest.raises(UserError, match='must be a store or an empty folder'): S.append(tmp_path, *made())
    with pytest.raises(UserError, match='a file is in the way'): S.append(tmp_path/'x'/'s', *made())
    with pytest.raises(UserError, match='must be a store'): S.compact(tmp_path)
    S.append(tmp_path/'s', *made()); (tmp_path/'s'/'store.json').write_text('{"promptbench store": 99, "removals": 0}')
    with pytest.raises(UserError, match='newer kind'): R.read_rows(tmp_path/'s')

# --- half-done work ------------------------------------------------------------------------------------------------------
class Killed(BaseException): pass

def dying(monkeypatch, owner, name, at):
    "Make the `at`-th call of a function end the process, as far as we can tell"
    real,count = getattr(owner, name),[0]
    def call(*a, **k):
        count[0] += 1
        if count[0]==at: raise Killed
        return real(*a, **k)
    monkeypatch.setattr(owner, name, call)

@pytest.mark.parametrize('owner,name,at', [(S,'to_parquet',1), (S,'to_parquet',2), (S,'write_atomic',1), (S,'write_atomic',2), (S,'_sync',1), (os,'rename',1)])
def test_a_writer_that_dies_leaves_nothing_visible(store, monkeypatch, owner, name, at):
    before = R.read_rows(store)
    with monkeypatch.context() as m:
        dying(m, owner, name, at)
        with pytest.raises(Killed): S.append(store, *made(seed=7))
    assert any(n.startswith('.new-') for n in os.listdir(store)); same(R.read_rows(store), before); same(R.read_rows(f'{store.parent}/**'), before)
    S.append(store, *made(seed=7)); S.compact(store)
    assert len(R.read_rows(store))==10 and not any(n.startswith('.new-') for n in os.listdir(store))

@pytest.mark.parametrize('owner,name,at', [(S,'to_parquet',2), (S,'write_atomic',1), (S,'write_atomic',3), (os,'rename',1), (S,'write_atomic',5), (os,'rename',2), (os,'rename',4), (S.shutil,'rmtree',1), (S.shutil,'rmtree',3)])
def test_a_compactor_that_dies_loses_and_repeats_nothing(store, monkeypatch, owner, name, at):
    before = R.read_rows(store)
    with monkeypatch.context() as m:
        dying(m, owner, name, at)
        with pytest.raises(Killed): S.compact(store)
    two_writers.strict()
    try:
        same(R.read_rows(store), before); assert S.append(store, *made(seed=2)) is None; S.append(store, *made(seed=8)); assert len(R.read_rows(store))==10
        S.compact(store); assert len(R.read_rows(store))==10 and len(R.read_predictions(store))==40 and len(R.parts(store))==1
    finally: R._merge = R._merge.__closure__[0].cell_contents
    assert not [n for n in os.listdir(store) if n.startswith(('.new','.gone'))]

def test_a_listing_torn_by_a_merge_is_done_again(store, monkeypatch):
    "The worst moment: the listing has passed where the merged part will be, then two parts it has not reached are merged and removed"
    before,scan,first,late = R.read_rows(store),os.scandir,[True],R.parts(store)[2:]; monkeypatch.setattr(S, '_batches', lambda store, small: [late])
    class Torn:
        def __enter__(self): return self
        def __exit__(self, *a): pass
        def __iter__(self):
            yield from [e for e in scan(store) if store/e.name not in late]
            S.compact(store)
    def torn(folder):
        if first[0] and Path(folder)==store: first[0] = False; return Torn()
        return scan(folder)
    monkeypatch.setattr(R.os, 'scandir', torn); same(R.read_rows(store), before); assert not first[0]

def test_a_part_that_vanishes_while_it_is_read(store, monkeypatch):
    before,read,first = R.read_rows(store),R._read,[True]
    def slow(*a, **k):
        if first[0]: first[0] = False; S.compact(store)
        return read(*a, **k)
    monkeypatch.setattr(R, '_read', slow); same(R.read_rows(store), before)

# --- finding and reading ---------------------------------------------------------------------------------------------------
def test_a_pattern_reads_stores_tables_and_evaluations(store):
    runs = store.parent
    for method in ('table','evaluated'): R.write_rows(made(method)[0], runs/method/'rows.parquet'); R.write_predictions(made(method)[1], runs/method/'predictions.parquet')
    R.write_rows(made('table', right=1, run='old')[0], runs/'table'/'cells'/'old'/'rows.parquet') # gathered already, or of other settings
    R.write_rows(made('unfinished')[0], runs/'unfinished'/'cells'/'c'/'rows.parquet')
    pq.write_table(pa.table(dict(a=[1])), runs/'foreign.parquet')
    got = results(f'{runs}/**'); assert got.method.value_counts().to_dict()=={'m':8,'table':2,'evaluated':2,'unfinished':2}
    assert len(results(f'{runs}/**', table='predictions'))==32+8+8
    assert len(results([runs/'table', store]))==10 and len(results(f'{runs}/*'))==14 and len(results(runs/'table'/'rows.parquet'))==2

def test_two_runs_under_one_key(tmp_path):
    R.write_rows(made()[0], tmp_path/'a'/'rows.parquet'); R.write_rows(made(run='b')[0], tmp_path/'b'/'rows.parquet'); assert len(results(tmp_path))==2
    R.write_rows(made(right=1, run='c')[0], tmp_path/'c'/'rows.parquet')
    with pytest.raises(UserError) as e: results(tmp_path)
    for w in ("'a', 'b', 'c'", 'c/rows.parquet', 'a/rows.parquet'): assert w in str(e.value).replace("\\", '/')
    assert sorted(results(tmp_path, all_runs=True).run)==list('aabbcc')

def test_versions(tmp_path, monkeypatch):
    f = R.write_rows(made()[0], tmp_path/'rows.parquet'); t = pq.read_table(f)
    for mark,words in [('rows/2','update promptbench'), ('rows/0','no longer reads'), ('rows/x','must hold rows'), ('predictions/1','must hold rows')]:
        pq.write_table(t.replace_schema_metadata({b'promptbench':mark.encode()}), f)
        with pytest.raises(UserError, match=words): R.read_rows(f)
    pq.write_table(t.rename_columns(['accuracy' if c=='value' else c for c in t.column_names]).replace_schema_metadata({b'promptbench':b'rows/0'}), f)
    monkeypatch.setitem(R.UPGRADES, 0, lambda kind, old: old.rename_columns(['value' if c=='accuracy' else c for c in old.column_names]))
    assert R.read_rows(f).value.tolist()==[.75,.75]
    pq.write_table(t.drop_columns(['n']), f)
    with pytest.raises(UserError, match='must hold the columns'): R.read_rows(f)

def test_nothing_there_says_where(tmp_path):
    for where in (tmp_path, tmp_path/'nowhere', f'{tmp_path}/**', f'{tmp_path}/x*/rows.parquet'):
        with pytest.raises(UserError) as e: results(where)
        assert 'no rows at' in str(e.value) and str(where) in str(e.value)

def test_many_small_result_sets_are_read_quickly(tmp_path):
    part = S.append(tmp_path/'s', *made()); t = R.load(part, ('rows','predictions'))
    def put(table, kind, seed): R.pq.write_table(table.set_column(table.column_names.index('seed'), 'seed', pa.array([seed]*len(table))).replace_schema_metadata({b'promptbench':f'{kind}/1'.encode()}), f/f'{kind}.parquet')
    for i in range(1,200):
        f = tmp_path/'s'/f'x-{i:04}'; f.mkdir()
        for kind in t: put(t[kind], kind, i)
    t0 = time.process_time(); got = results(tmp_path/'**', sql='select count(*) as n, sum(correct::int) as right from predictions'); took = time.process_time()-t0
    assert (got.n[0],got.right[0])==(200*8,200*6) and took<1, took

# --- SQL ---------------------------------------------------------------------------------------------------------------
def test_queries_join_and_keep_lists(store):
    got = results(store, sql='select seed, avg(correct::int) as again, avg(value) as value, list(distinct template order by template) as ts from predictions join rows using (seed, template) group by seed order by seed')
    assert got.again.tolist()==got.value.tolist()==[.75]*4 and list(got.ts[0])==['t0','t1']
    p = results(store, table='predictions', where='seed=2'); assert len(p)==8 and [len(x) for x in p.scores_mean]==[2]*8 and p.scores_mean[1].tolist()==[-.5,-1.]
    R.write_predictions(p, store.parent/'again.parquet')
    assert len(results(store, sql='pivot rows on seed using avg(value)').columns)>4 and len(results(store, sql='describe predictions'))==len(R.PREDICTION_COLUMNS)

@pytest.mark.parametrize('sql', ["copy rows to '{p}'", "export database '{p}'", "attach '{p}' as x", "create table x as select 1", "install httpfs", "load httpfs", "set enable_external_access=true", "from rows; copy rows to '{p}'",
    "select * from read_text('{f}')", "select * from '{f}'", "select * from glob('{d}/*')", "select * from sniff_csv('{f}')", "select * from secret", "from t", "select write_log('x') from nowhere", "pragma temp_directory='{d}'", "call enable_logging()"])
def test_sql_reaches_nothing_but_the_tables(store, sql):
    secret = pd.DataFrame(dict(a=[1])); d = store.parent; (d/'f.csv').write_text('a\n1\n'); before = sorted(d.rglob('*'))
    with pytest.raises(UserError): results(store, sql=sql.format(p=d/'out.csv', f=d/'f.csv', d=d))
    assert sorted(d.rglob('*'))==before

def test_sql_errors_are_one_line_with_the_columns(store):
    for sql,word in [('select accuracy from rows','accuracy'), ('selec 1','syntax error'), ('select * from results','results')]:
        with pytest.raises(UserError) as e: results(store, sql=sql)
        assert word in str(e.value) and 'rows(suite, backbone' in str(e.value) and '\n' not in str(e.value)

def test_none_of_it_needs_torch():
    code = "import sys; from promptbench.stats import store; from promptbench.stats import query; from promptbench.stats import scores; print([m for m in ('torch','duckdb','filelock') if m in sys.modules])"
    assert subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout.strip()=='[]'

# --- ARG from a table ------------------------------------------------------------------------------------------------------
XL = data_dir('paper','promptability_xl_deep_16shot_per_template.csv')

@pytest.mark.parametrize('by,want', [('macro9',[42.91,43.19]), ('datasets',[36.98,37.62]), ('templates',[38.70,39.36])])
def test_released_scores_in_any_shape(by, want, tmp_path):
    wide = read_scores(XL, 'template=inferred_task_name,value=acc_T0*,value=acc_MTL*'); assert arg_scores(wide, by=by, baseline='chance')['arg'].tolist()==pytest.approx(want, abs=.01)
    wide.sample(frac=1, random_state=1).to_parquet(tmp_path/'long.parquet'); long = arg_scores(read_scores(tmp_path/'long.parquet'), by=by, baseline='chance').set_index('run')
    assert long['arg'][['acc_T0_reproduction','acc_MTL_TfirePfire']].tolist()==pytest.approx(want, abs=.01)

def test_damaged_tables_are_refused(tmp_path):
    df = pd.DataFrame(dict(dataset=['a','b'], template='t', value=[.5,.6], chance=.5)); f = tmp_path/'x.csv'
    def refused(d, words, columns=None, **how):
        d.to_csv(f, index=False)
        with pytest.raises(UserError, match=words): arg_scores(read_scores(f, columns), **dict(by='macro9', baseline='chance')|how)
    refused(df.rename(columns=dict(value='acc')), "for \\['value'\\] say which"); refused(df.assign(value=[.5,None]), 'value'); refused(df.assign(value=['half',.5]), 'value')
    refused(pd.concat([df,df]), 'share'); refused(df, 'columns must look like', 'acc'); refused(df, 'only value can be several', 'dataset=a,dataset=b'); refused(df, 'must be .chance', baseline='other')
    refused(df.drop(columns='chance'), 'chance'); refused(df.assign(run=['x','y']), 'no baseline', baseline='x'); refused(df, 'by must be', by='macro11')

def test_baselines_and_intervals_in_a_store(tmp_path):
    for m,r in (('none',20),('T+P',30)):
        for seed in (0,1): S.append(tmp_path/'s', *made(m, seed, right=r, n=40, run=f'{m}{seed}'))
    s = read_scores(tmp_path/'s'); how = dict(by='macro9', baseline='chance'); t = intervals(arg_scores(s, **how), tmp_path/'s', s, **how)
    assert t['arg'].tolist()==pytest.approx([50,0]) and t.seeds.tolist()==[2,2] and (t.lo<t['arg']).all() and (t['arg']<t.hi).all()
    assert arg_scores(s, by='macro9', baseline='method=none,shots=16')['arg'].tolist()==pytest.approx([50,0])
    assert groups_named('p3', s) is None and groups_named('none', s)=={}
    assert 'lo' not in intervals(arg_scores(s[s.seed==0], **how), XL, s, **how)

def test_folders_of_people_in_a_store_stay(tmp_path):
    store = tmp_path/'s'; S.append(store, *made(seed=0, run='a')); S.append(store, *made(seed=1, run='b'))
    for name in ('notes', 'figures-2024', '.new-ideas', '.gone-fishing'): (store/name).mkdir(); (store/name/'mine.txt').write_text('by hand')
    left = store/f'.new-many-{"0"*16}'; left.mkdir()
    S.compact(store)
    assert all((store/name/'mine.txt').exists() for name in ('notes', 'figures-2024', '.new-ideas', '.gone-fishing')) and not left.exists()
