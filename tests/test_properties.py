"What must hold for whatever comes, tried on inputs that hypothesis makes up, the same ones every time"
import csv, gzip, io, json, math, os, tempfile
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from promptbench.base.core import UserError, key_of, to_json
from promptbench.data.files import read_records
from promptbench.data.templates import Template, read_templates, write_templates

MANY = int(os.environ.get('PROPERTY_EXAMPLES') or 40)   # more, and other ones, for a person who looks for trouble
HOUSE = settings(derandomize=MANY==40, deadline=None, max_examples=MANY, database=None, suppress_health_check=list(HealthCheck))
PLACE = Path(tempfile.mkdtemp(prefix='properties-'))

text = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\x00'), max_size=20)
name = st.text('abcdefgh_', min_size=1, max_size=6)
whole = st.integers(-2**53, 2**53)
real = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(st.none()|st.booleans()|whole|real|text, lambda x: st.lists(x, max_size=3)|st.dictionaries(name, x, max_size=3), max_leaves=6)

def same(a, b)->bool:
    "Equal in type and value, so that 1, 1.0 and True differ"
    if type(a) is not type(b): return False
    if isinstance(a, dict): return list(a)==list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a)==len(b) and all(map(same, a, b))
    return a==b

# --- files of records ------------------------------------------------------------------------------------------------
@HOUSE
@given(st.lists(st.dictionaries(name, plain, min_size=1, max_size=4), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_json_lines_come_back(rows, ascii, packed):
    data = ''.join(json.dumps(r, ensure_ascii=ascii)+'\n' for r in rows).encode()
    path = PLACE/('a.jsonl.gz' if packed else 'a.jsonl')
    path.write_bytes(gzip.compress(data) if packed else data)
    assert same(read_records(path), rows)

@HOUSE
@given(st.lists(name, min_size=2, max_size=4, unique=True), st.data())
def test_csv_comes_back(names, data):
    cell = st.text(st.characters(exclude_categories=['Cs','Cc']), min_size=1, max_size=12).filter(lambda s: not s.strip().replace('.', '').replace('-', '').isdigit())
    columns = [data.draw(st.lists(cell, min_size=3, max_size=3) | st.lists(whole, min_size=3, max_size=3)) for _ in names]
    out = io.StringIO(newline='')
    writer = csv.writer(out)
    writer.writerows([names, *zip(*columns)])
    (PLACE/'a.csv').write_bytes(out.getvalue().encode())
    assert same(read_records(PLACE/'a.csv'), [dict(zip(names, row)) for row in zip(*columns)])

@HOUSE
@given(st.integers(1, 5), st.booleans(), st.booleans(), st.data())
def test_parquet_comes_back(n, dictionaries, many_groups, data):
    kinds = [st.none()|text, st.none()|whole, st.none()|real, st.none()|st.booleans(), st.none()|st.lists(text, max_size=3)]
    types = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string())]
    columns = {f'c{i}': pa.array(data.draw(st.lists(kind, min_size=n, max_size=n)), t) for i,(kind,t) in enumerate(zip(kinds, types))}
    table = pa.table(columns)
    pq.write_table(table, PLACE/'a.parquet', use_dictionary=dictionaries, row_group_size=1 if many_groups else None)
    assert same(list(read_records(PLACE/'a.parquet')), table.to_pylist())

@HOUSE
@given(st.sampled_from(['.jsonl','.jsonl.gz','.csv','.parquet']), st.binary(max_size=200), st.sampled_from([b'', b'PAR1', b'{"a": 1}\n', b'a,b\n1,2\n', b'\x1f\x8b\x08\x00']))
def test_bytes_are_rows_or_an_error(ending, data, head):
    path = PLACE/f'b{ending}'
    path.write_bytes(head+data)
    flaws = []
    for row in read_records(path, flaws.append): assert isinstance(row, dict) and row
    if flaws:
        with pytest.raises(UserError): read_records(path)

# --- templates -------------------------------------------------------------------------------------------------------
RECORD = dict(text='A fine film.', label=1, words=['a','b'], n=3)
bits = st.sampled_from(['{{','}}','{%','%}','text','label','words','n',' ','|','upper','join','for w in words','endfor','if n','endif','set x =','(',')','[','0',']','.','+','~','"a"','|||','{#','#}','-','*','range(9)','is','not','\n','é'])

@HOUSE
@given(st.lists(bits, max_size=14).map(''.join))
def test_a_template_gives_text_or_an_error(source):
    def outcome():
        try: return Template('t', source+'||| {{label}}').parts(dict(RECORD))
        except UserError as e: return str(e)
    first = outcome()
    assert outcome()==first

@HOUSE
@given(st.lists(text.filter(str.strip), min_size=1, max_size=4, unique=True), st.data())
def test_templates_come_back(names, data):
    jinja = st.lists(st.sampled_from(['{{text}}','{{words|join(", ")}}',' is ','\n','"','\t','é','😀',"'",': ','# ','- ']), min_size=1, max_size=6).map(''.join)
    made = [Template(n, data.draw(jinja)+' ||| {{label}}', data.draw(st.none()|st.just('no ||| yes')), dict(original_task=data.draw(st.booleans()))) for n in names]
    read = read_templates(write_templates(made, PLACE/'t.yaml', 'd'))
    assert [(t.name, t.jinja, t.answer_choices, t.metadata['original_task']) for t in read]==[(t.name, t.jinja, t.answer_choices, t.metadata['original_task']) for t in made]
    for a,b in zip(made, read): assert a.parts(RECORD)==b.parts(RECORD)

@pytest.mark.parametrize('odd', ['\x85','\u2028','\u2029','\ufeff','\xa0','\t','\r\n'], ids=ascii)
def test_odd_line_breaks_of_a_template_come_back(odd):
    made = Template('a'+odd+'b', f'x{odd}{{{{text}}}} ||| y', f'no{odd} ||| yes')
    read, = read_templates(write_templates([made], PLACE/'t.yaml', 'd'))
    assert (read.name, read.jinja, read.answer_choices)==(made.name, made.jinja, made.answer_choices)

@HOUSE
@given(text, text)
def test_fields_are_text_whatever_they_hold(a, b):
    "A field is shown as it is: what looks like Jinja or a separator in it means nothing"
    for odd in (a+'{{ n }}', '{% for %}'+b, a+'|||'+b):
        assert Template('t', '[{{x}}] ||| {{y}}', None).parts(dict(x=odd, y='z'))==(f'[{odd}]', 'z', None)

# --- metrics ---------------------------------------------------------------------------------------------------------
def predictions(data)->pd.DataFrame:
    n,choices = data.draw(st.integers(1, 12)),data.draw(st.integers(2, 4))
    gold,pred = (data.draw(st.lists(st.integers(0, choices-1), min_size=n, max_size=n)) for _ in range(2))
    return pd.DataFrame(dict(suite='s', backbone='b', method='m', prompt='p', shots=0, seed=0, cluster='c', dataset=['d','e']*(n//2)+['d']*(n%2), template='t',
        instance=[str(i) for i in range(n)], gold=gold, pred=pred, correct=[g==p for g,p in zip(gold, pred)], scores_sum=[[0.]*choices]*n))

@HOUSE
@given(st.data())
def test_accuracy_is_the_share_of_right_answers(data):
    from promptbench.stats.metrics import accuracy
    p = predictions(data)
    got = accuracy(p)
    for row in got.itertuples():
        mine = p[p.dataset==row.dataset]
        assert math.isclose(row.value, sum(mine.gold==mine.pred)/len(mine)) and row.n==len(mine)
        assert math.isclose(row.chance, 1/len(mine.scores_sum.iloc[0])) and math.isclose(row.majority, max(mine.gold.value_counts())/len(mine))
    assert got[['value','chance','majority']].stack().between(0, 1).all()

@HOUSE
@given(st.data(), st.randoms(use_true_random=False))
def test_accuracy_and_arg_know_no_order(data, random):
    from promptbench.stats.metrics import accuracy, arg
    p = predictions(data)
    order = list(range(len(p)))
    random.shuffle(order)
    a,b = (accuracy(x).sort_values('dataset').reset_index(drop=True) for x in (p, p.iloc[order]))
    pd.testing.assert_frame_equal(a, b)
    plain_arg = 100*np.mean([v/c-1 for v,c in zip(a.value, a.chance)])
    assert math.isclose(arg(a, baseline='chance', by='datasets'), plain_arg, abs_tol=1e-9)
    assert math.isclose(arg(a.iloc[::-1], baseline='chance', by='datasets'), plain_arg, abs_tol=1e-9)

# --- banks of prompts ------------------------------------------------------------------------------------------------
@HOUSE
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.data())
def test_a_bank_is_its_prompts(n, length, width, data):
    import torch
    from promptbench.prompt.bank import DeepPrompt, ShallowPrompt
    table = torch.arange(float(n*length*width)).reshape(n, length, width)
    for kind in (ShallowPrompt, DeepPrompt):
        bank = kind(table)
        picks = data.draw(st.lists(st.integers(0, n-1), min_size=1, max_size=6))
        assert len(bank)==n and bank.length==length
        assert torch.equal(bank.select(picks).table, torch.stack([table[i] for i in picks]))
        assert torch.equal(bank.rows(torch.tensor(picks)), bank.select(picks).table)
        assert torch.equal(torch.cat([bank.select([i]).table for i in range(n)]), bank.table)
        assert torch.equal(bank.repeat(3).select([i+2*n for i in picks if i<n]).table, bank.select(picks).table)
        assert torch.equal(bank.select(picks).select(range(len(picks))[::-1]).table, bank.select(picks[::-1]).table)

# --- keys ------------------------------------------------------------------------------------------------------------
@HOUSE
@given(plain, plain)
def test_equal_settings_have_equal_keys_and_others_others(a, b):
    assert key_of(a)==key_of(json.loads(json.dumps(a)))
    def ordered(x): return {k: ordered(x[k]) for k in sorted(x)} if isinstance(x, dict) else [ordered(v) for v in x] if isinstance(x, list) else x
    assert (key_of(a)==key_of(b))==same(ordered(a), ordered(b)) or (a==b==0 and to_json(a)!=to_json(b))

@HOUSE
@given(st.dictionaries(name, plain, min_size=1, max_size=5), st.randoms(use_true_random=False), st.data())
def test_the_order_of_names_means_nothing_and_any_change_something(d, random, data):
    items = list(d.items())
    random.shuffle(items)
    assert key_of(dict(items))==key_of(d)
    k,new = data.draw(st.sampled_from(sorted(d))),data.draw(plain)
    if to_json(new)!=to_json(d[k]): assert key_of(d|{k: new})!=key_of(d)
    assert key_of({n:v for n,v in d.items() if n!=k})!=key_of(d) and key_of('a', d)!=key_of('b', d)

def test_look_alikes_have_keys_of_their_own():
    alike = [1, 1., True, '1', '1.0', 'True', 'true', None, 'null', '', 0, False, [], [1], ['1'], {}, {'1': 1}, {'1': '1'}, [[1]]]
    assert len({key_of(x) for x in alike})==len(alike) and len({key_of(x, 2) for x in alike})==len(alike)
    assert key_of('a', 'b')!=key_of('ab') and key_of(['a','b'])!=key_of('a', 'b') and key_of('a\x1fb')!=key_of('a', 'b')
