"What strangers send takes no more memory and time than a count allows: templates, records, tables, YAML, grids, answers"
import gzip, resource, subprocess, sys, time
import pyarrow as pa, pyarrow.parquet as pq, pytest
from promptbench.base.core import UserError
from promptbench.data.templates import Template

# --- templates -------------------------------------------------------------------------------------------------------
BIG = '{% set s = range(90000)|join("") %}{% set n = s|int(0, 16) %}'
RANGES = '{% set r = range(99999) %}{% for i in range(99999) %}'
LISTS = '{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set _ = ns.x.append(range(99999)) %}{% endfor %}'
TREE = '{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}'

TEMPLATES = { # what it tries: the template, the limit that its error names
    'zip of lists': ('{% set r = range(99999)|list %}{{ zip(*[r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r])|list|length }}', '10,000,000'),
    'zip of many ranges': (LISTS+'{{ zip(*ns.x)|list|length }}', '10,000,000'),
    'filter that is quadratic': ('{{ range(90000)|select("in", range(90000)|map("string")|list)|list|length }}', '10,000,000'),
    'search in a range': (RANGES+'{% if "x" in r %}{% endif %}{% endfor %}', '10,000,000'),
    'sum of a range': (RANGES+'{% set x = r|sum %}{% endfor %}', '10,000,000'),
    'draw from a range': (RANGES+'{% set x = r|choice %}{% endfor %}', '10,000,000'),
    'values of a mapping': ('{% set v = dict(zip(range(9000),range(9000))).values() %}{% for i in range(90000) %}{% if "x" in v %}{% endif %}{% endfor %}', '10,000,000'),
    'difference of mappings': ('{% set k = dict(zip(range(9000),range(9000))).keys() %}{% for i in range(90000) %}{% set x = k - k %}{% endfor %}', '- is for numbers'),
    'nested loops': ('{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}', '100,000 steps'),
    'long body of a loop': ('{% for i in range(99999) %}'+'{% set a = 1 %}'*9000+'{% endfor %}', '10,000,000'),
    'long body of a macro': ('{% macro m() %}'+'{% set a = 1 %}'*9000+'{% endmacro %}{% for i in range(9999) %}{{ m() }}{% endfor %}', '10,000,000'),
    'long body of a loop that calls itself': ('{% for i in [1] recursive %}'+'{% set a = 1 %}'*9000+'{% if i==1 %}{{ loop(range(2, 9999)) }}{% endif %}{% endfor %}', '10,000,000'),
    'long condition of a loop': ('{% for i in range(99999) if ['+'1,'*50000+'] %}{% endfor %}', '10,000,000'),
    'long list in a loop': ('{% for i in range(99999) %}{% set x = ['+'1,'*50000+'] %}{% endfor %}', '10,000,000'),
    'long path of an attribute': ('{{ range(90000)|map(attribute="'+'a.'*50000+'a", default=0)|list|length }}', '10,000,000'),
    'many arguments': ('{% set l = range(9000)|list %}{% macro m() %}{{ varargs|length }}{% endmacro %}{% for i in range(90000) %}{{ m(*l) }}{% endfor %}', '10,000,000'),
    'huge number from text': (BIG+'{{ n is even }}', '1,000 digits'),
    'huge number as a float': (BIG+'{{ n / 3 }}', '1,000 digits'),
    'number that doubles': ('{% set ns = namespace(x=3) %}{% for i in range(90000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}', '1,000 digits'),
    'power': ('{{ 9**9**99 }}', 'small ones'),
    'text times a number': ('{{ "x" * 10**9 }}', 'small ones'),
    'width of a format': ('{{ "%999999999d" % 3 }}', 'small ones'),
    'centred text': ('{{ "x".center(10**9) }}', 'unsafe'),
    'text replaced by more': ('{% set ns = namespace(x="aaaaaaaaaa") %}{% for i in range(30) %}{% set ns.x = ns.x|replace("a", "aaaaaaaaaa") %}{% endfor %}', '10,000,000'),
    'text joined by more': ('{% set s = range(90000)|join("x") %}{{ s.join(s) }}', '10,000,000'),
    'characters that are compared': ('{% set ns = namespace(a="a") %}{% for i in range(18) %}{% set ns.a = ns.a~ns.a %}{% endfor %}{% for i in range(99) %}{{ (ns.a~"b").lstrip(range(90000)|join("")) }}{% endfor %}', '10,000,000'),
    'list that doubles': ('{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x+ns.x %}{% endfor %}', '10,000,000'),
    'list inside itself': ('{% set x = [] %}{% set _ = x.append(x) %}{{ x }}', '10,000,000'),
    'trees that are compared': (TREE+'{{ ns.x==ns.y }}', '10,000,000'),
    'tree as text': (TREE+'{{ ns.x|string|length }}', '10,000,000'),
    'macro that calls itself': ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', '40 calls'),
    'macro that calls itself twice': ('{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(30) }}', 'more than'),
    'block that shows itself': ('{% block a %}{{ self.a() }}{% endblock %}', '40 calls'),
    'loop that calls itself': ('{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}', '40 calls'),
    'most frequent of many': ('{% for i in range(99) %}{{ range(90000)|most_frequent|length }}{% endfor %}', '10,000,000'),
    'other templates': ('{% include "a" %}', 'TypeError'),
}

@pytest.mark.parametrize('kind', TEMPLATES, ids=lambda k: k.replace(' ','-'))
def test_a_template_stops_at_a_count(kind):
    text,words = TEMPLATES[kind]
    before,cpu = peak(),time.process_time()
    with pytest.raises(UserError) as e: Template('bad', text+' ||| no').parts(dict(text='x'))
    assert "template 'bad'" in str(e.value) and words in str(e.value) and len(str(e.value))<400, str(e.value)
    assert time.process_time()-cpu<30 and peak()-before<300, (time.process_time()-cpu, peak()-before)

def peak()->float:
    "The most memory this process ever held, in MB"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most/2**20 if sys.platform=='darwin' else most/2**10

def test_the_same_count_everywhere():
    "A rendering that is just allowed, and one more that is not, whatever the machine and however deep the caller stands"
    t = Template('t', '{% macro m(n) %}{% if n %}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(n) }}x ||| no')
    def deeper(k, n): return deeper(k-1, n) if k else t.apply(dict(n=n))
    for k in (0, 300):
        assert deeper(k, 39)[0]=='x'
        with pytest.raises(UserError, match='40 calls'): deeper(k, 40)

def test_a_usual_template_is_far_below_the_limits():
    passages = [dict(title=f'Title {i}', text='word '*200) for i in range(100)]
    t = Template('t', '{% for p in passages|sort(attribute="title") %}{{ loop.index }}. {{ p.title|upper }}: {{ p["text"].split()|join(" ") }}\n{% endfor %} ||| {{ passages|map(attribute="title")|join(", ") }}')
    assert len(t.apply(dict(passages=passages))[0])>100_000

# --- files of records ------------------------------------------------------------------------------------------------
def gz(path, line, times):
    with gzip.open(path, 'wb', 1) as f:
        for _ in range(times//100_000): f.write(line*100_000)
def repeated(path, n, text):
    "A text that stands once and is meant n times, in a column and in a list"
    texts = pa.DictionaryArray.from_arrays(pa.array([0]*n, pa.int32()), pa.array([text]))
    lists = pa.ListArray.from_arrays(pa.array(range(n+1), pa.int32()), texts)
    pq.write_table(pa.table(dict(a=texts)), f'{path}/text.parquet', store_schema=False)
    pq.write_table(pa.table(dict(a=lists)), f'{path}/list.parquet', store_schema=False)
    pq.write_table(pa.table(dict(a=pa.StructArray.from_arrays([lists], ['b']))), f'{path}/struct.parquet', store_schema=False)

def most_memory(path)->tuple[float,str]:
    "MB that reading a file takes in a process of its own above what its imports take, and its error"
    code = f"""
import resource, sys
import pyarrow.parquet, pyarrow.compute
from promptbench.data.files import read_records
from promptbench.base.core import UserError
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform=='darwin' else 2**10)
before = peak()
try: said = 'read '+str(len(read_records({str(path)!r})))
except UserError as e: said = str(e)
print(peak()-before, said)"""
    out = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout
    took,_,said = out.strip().partition(' ')
    return float(took),said

def test_thirty_million_rows_in_a_small_file(tmp_path):
    gz(tmp_path/'a.jsonl.gz', b'{"a":1}\n', 30_000_000)
    assert (tmp_path/'a.jsonl.gz').stat().st_size<3e6
    took,said = most_memory(tmp_path/'a.jsonl.gz')
    assert 'must have at most 2,147,483,648 bytes' in said and 'PROMPTBENCH_MAX_FILE' in said and took<50, (took,said)

@pytest.mark.parametrize('line', [b' '*99, b'[]', b'{"a":[[],[],[],[],[],[],[],[]]}\n'], ids=['one-line','no-end','lists'])
def test_other_bombs_in_gzip(tmp_path, line, monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_MAX_FILE', '2e7')
    gz(tmp_path/'a.jsonl.gz', line, 400_000)
    took,said = most_memory(tmp_path/'a.jsonl.gz')
    assert 'must have at most 20,000,000 bytes' in said and took<50, (took,said)

@pytest.mark.parametrize('kind', ['text','list','struct'])
def test_a_text_that_stands_once_and_is_meant_often(tmp_path, kind):
    repeated(tmp_path, 1_000_000, 'x'*100_000)
    path = tmp_path/f'{kind}.parquet'
    assert path.stat().st_size<2e6
    took,said = most_memory(path)
    assert 'must have at most 2,147,483,648 bytes' in said and took<250, (took,said)

def test_a_usual_dictionary_is_read(tmp_path):
    repeated(tmp_path, 20_000, 'x'*100)
    from promptbench.data.files import read_records
    assert read_records(tmp_path/'text.parquet')[19_999]==dict(a='x'*100)
    assert read_records(tmp_path/'struct.parquet')[7]==dict(a=dict(b=['x'*100]))

def test_a_table_that_says_its_size(tmp_path, monkeypatch):
    import numpy as np
    monkeypatch.setenv('PROMPTBENCH_MAX_FILE', '1e8')
    pq.write_table(pa.table(dict(a=np.zeros(20_000_000, 'int8'))), tmp_path/'a.parquet')
    pq.write_table(pa.table({f'c{i}': [1] for i in range(10_001)}), tmp_path/'b.parquet')
    (tmp_path/'c.csv').write_text(','.join(f'c{i}' for i in range(10_001))+'\n')
    (tmp_path/'d.csv').write_text('a,b\n'+','*2_000_000+'\n')
    took,said = most_memory(tmp_path/'a.parquet')
    assert 'at most 100,000,000 bytes' in said and took<30, (took,said)
    for name,words in (('b.parquet','at most 10,000 columns'), ('c.csv','at most 10,000 columns'), ('d.csv','at most 100,000,000 bytes')):
        assert words in most_memory(tmp_path/name)[1], name

def test_depth_of_a_record_is_counted(tmp_path):
    from promptbench.data.files import read_records
    def deep(n): return '{"a":'*n+'1'+'}'*n
    (tmp_path/'a.jsonl').write_text(deep(100)+'\n')
    (tmp_path/'b.jsonl').write_text(deep(101)+'\n')
    (tmp_path/'c.jsonl').write_text('{"a": "'+'['*1000+'"}\n')
    assert len(read_records(tmp_path/'a.jsonl'))==len(read_records(tmp_path/'c.jsonl'))==1
    with pytest.raises(UserError, match='line 1: its JSON is nested too deeply'): read_records(tmp_path/'b.jsonl')

def test_a_person_may_allow_more(tmp_path, monkeypatch):
    from promptbench.data.files import read_records
    (tmp_path/'a.jsonl').write_text('{"a": 1}\n'*10_000)
    monkeypatch.setenv('PROMPTBENCH_MAX_FILE', '1e6')
    with pytest.raises(UserError, match='at most 1,000,000 bytes'): read_records(tmp_path/'a.jsonl')
    monkeypatch.setenv('PROMPTBENCH_MAX_FILE', '1e7')
    assert len(read_records(tmp_path/'a.jsonl'))==10_000

# --- sweeps ----------------------------------------------------------------------------------------------------------
def aliases(levels:int, last:str='a')->str:
    "YAML whose last name means 9 to the power of `levels` values"
    names = [f'n{i}' for i in range(levels)]
    lines = [f'{a}: &{a} [{",".join(["x"]*9 if i==0 else [f"*{names[i-1]}"]*9)}]' for i,a in enumerate(names)]
    return '\n'.join(lines).replace(f'{names[-1]}:', f'{last}:')

STEPS = 'steps: {tune: {}}\n'
SWEEPS = { # what it tries: the YAML, words of the error
    'many seeds': (STEPS+'seeds: 1000000000000', '1,000,000,000,000'),
    'grid of a thousand million': (STEPS+'axes:\n'+''.join(f'  a{i}: {list(range(10))}\n' for i in range(9)), 'would have 1,000,000,000'),
    'cells that are included': (STEPS+'axes:\n'+''.join(f'  a{i}: {list(range(10))}\n' for i in range(4))+'include:\n'+'- {b: 1}\n'*20, 'would have 210,000'),
    'many steps': ('seeds: 60\nsteps:\n'+''.join(f'  s{i}: {{page: tune}}\n' for i in range(9_000)), 'would have 540,000'),
    'many exclusions': (STEPS+'axes: {a: '+str(list(range(9000)))+'}\nexclude:\n'+'- {a: 1}\n'*9000, '9,000 of these'),
    'aliases': (STEPS+'set: {a: *b}\n', 'must be YAML'),
    'alias bomb': ('set:\n'+''.join('  '+l+'\n' for l in aliases(12).splitlines())+STEPS, 'at most 1,000,000 values'),
    'alias to itself': (STEPS+'set: &a {b: *a}\n', 'inside each other'),
    'merge bomb': ('set:\n  m0: &m0 {'+', '.join(f'k{i}: 1' for i in range(9))+'}\n'+''.join(f'  m{i}: &m{i} {{<<: [{", ".join([f"*m{i-1}"]*9)}]}}\n' for i in range(1,9))+STEPS, 'at most 10,000 names'),
    'deep': ('a: '+'['*5000+']'*5000, 'must be YAML'),
    'number in base 60': (STEPS+'set: {a: '+'1:'*200_000+'1}', 'must be a parameter'),
    'name that is a way out': (STEPS+'name: ../../etc', 'becomes a folder'),
    'name of another root': (STEPS+'name: /etc/x', 'becomes a folder'),
    'name with a backslash': (STEPS+'name: "..\\\\x"', 'becomes a folder'),
    'name that is a folder up': (STEPS+'name: ".."', 'becomes a folder'),
    'names that are numbers': ('axes: {1: [2]}\n'+STEPS, 'must be text'),
    'a date': (STEPS+'set: {a: 2020-01-01}', 'must be text, numbers'),
    'no date': (STEPS+'set: {a: 2020-99-99}', 'must be YAML'),
    'tag that is wrong': (STEPS+'set: {a: !!bool x}', 'must be YAML'),
    'time that is wrong': (STEPS+'set: {a: !!timestamp x}', 'must be YAML'),
    'an object': (STEPS+'set: {a: !!python/object/apply:os.system [x]}', 'must be YAML'),
}

@pytest.mark.parametrize('kind', SWEEPS, ids=lambda k: k.replace(' ','-'))
def test_a_sweep_stops_at_a_count(tmp_path, kind):
    from promptbench.engine.grid import expand
    text,words = SWEEPS[kind]
    (tmp_path/'s.yaml').write_text(text)
    before,cpu = peak(),time.process_time()
    with pytest.raises(UserError) as e: expand(tmp_path/'s.yaml', auto='float32')
    assert words in str(e.value) and len(str(e.value))<1500, str(e.value)[:2000]
    assert time.process_time()-cpu<20 and peak()-before<300, (time.process_time()-cpu, peak()-before)

YAMLS = dict(
    brackets='a: '+'['*1_000_000, braces='a: '+'{a: '*400_000, dashes='- '*1_000_000, aliases=aliases(12), itself='a: &a [*a]',
    base60='a: '+'1:'*1_000_000+'1\nb: !!bool x', twice=''.join(f'k{i}: 1\n' for i in range(200_000))+'k7: 2',
    long='#'*30_000_000, bool='a: !!bool x', time='a: !!timestamp x', date='a: 2020-99-99', key='{[1,2]: 3}', several='---\na: 1\n---\nb: 2')

@pytest.mark.parametrize('kind', YAMLS)
def test_a_file_of_templates_stops_at_a_count(tmp_path, kind):
    "In a process of its own: a parser in C that overflows its stack takes everything with it"
    (tmp_path/'t.yaml').write_text(YAMLS[kind])
    code = ("import sys, time\nfrom promptbench.data.templates import read_templates\nfrom promptbench.base.core import UserError\n"
            "try: read_templates(sys.argv[1])\nexcept UserError as e: print(e)\nassert time.process_time()<40")
    out = subprocess.run([sys.executable,'-c',code,str(tmp_path/'t.yaml')], capture_output=True, text=True)
    assert out.returncode==0 and 't.yaml' in out.stdout and len(out.stdout)<600, (out.returncode, out.stdout[:800], out.stderr[-800:])

def test_a_sweep_of_a_name_with_a_way_out_writes_nothing(tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from promptbench.cli.sweep import app
    monkeypatch.chdir(tmp_path)
    (tmp_path/'s.yaml').write_text(STEPS+'name: ../../../out')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError): CliRunner().invoke(app, ['s.yaml','--root',str(tmp_path/'a'/'runs')], catch_exceptions=False)
    assert sorted(tmp_path.rglob('*'))==before

# --- record files of TensorFlow --------------------------------------------------------------------------------------
def test_records_that_are_none(tmp_path):
    from promptbench.data.tfrecord import TFRecords, example, frame
    path = tmp_path/'a.tfrecord-00000-of-00001'
    path.write_bytes(frame(example(dict(x=[1], y=['a'])))+frame(b'\xff'*30)+frame(example(dict(x=[1])).replace(b'\x01', b'\x02', 1)))
    rows = TFRecords([path])
    assert rows[0]==dict(x=[1], y=['a'])
    with pytest.raises(UserError, match='record 1: a record must be a tf.train.Example'): rows[1]
    with pytest.raises(UserError, match='record 1'): rows.column('x')
    path.write_bytes(frame(example(dict(y=[b'\xc3\x28'.decode('latin1')])).replace('Ã('.encode(), b'\xff\xfe\xfd')))
    with pytest.raises(UserError, match='record 0: a record must be a tf.train.Example'): TFRecords([path])[0]
    path.write_bytes(frame(example(dict(x=[1])))+frame(example(dict(y=[1]))))
    with pytest.raises(UserError, match="record 1: it has no field 'x'"): TFRecords([path]).column('x')

def test_a_length_that_is_no_length(tmp_path):
    import struct
    from promptbench.data.tfrecord import TFRecords, _masked
    head = struct.pack('<Q', 2**63-1)
    (tmp_path/'a').write_bytes(head+struct.pack('<I', _masked(head))+b'x'*99)
    with pytest.raises(UserError, match='cut short in record 0'): TFRecords([tmp_path/'a'])

# --- answers to queries ----------------------------------------------------------------------------------------------
QUERIES = dict(
    rows='select * from range(100000000000)', text="select repeat('x', 10000) as a from range(1000000)",
    lists='select list(a.range) from range(100000000) a, range(10) b', sort='select * from range(2000000000) order by random()')

@pytest.mark.parametrize('kind', QUERIES)
def test_an_answer_stops_at_a_count(kind, monkeypatch):
    monkeypatch.setenv('PROMPTBENCH_MAX_ANSWER', '1e8')
    code = ("import resource, sys, time, pyarrow as pa\nfrom promptbench.stats.query import query\nfrom promptbench.base.core import UserError\n"
            "import duckdb, pandas\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"try: query({QUERIES[kind]!r}, rows=pa.table(dict(a=[1])))\nexcept UserError as e: print(e)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)>>10)\nassert time.process_time()<100")
    out = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True)
    assert out.returncode==0 and 'PROMPTBENCH_MAX_ANSWER' in out.stdout and len(out.stdout)<600, (out.returncode, out.stdout, out.stderr[-900:])
    assert int(out.stdout.split()[-1])<1000, out.stdout

@pytest.mark.parametrize('sql', ["select * from 'FILE'", "select * from read_csv('FILE')", "select * from read_text('FILE')", "copy (select 1) to 'OUT'", "attach 'OUT' as x",
    "select * from glob('*')", "install httpfs", "load json", "export database 'OUT'", "select getenv('HOME')", "set memory_limit='100GB'", "pragma enable_profiling", "import database 'OUT'", "select * from pd_table"])
def test_a_query_reaches_no_file(tmp_path, sql):
    from promptbench.stats.query import query
    (tmp_path/'a.csv').write_text('secret\n1\n')
    pd_table = pa.table(dict(secret=[1]))
    with pytest.raises(UserError): query(sql.replace('FILE', str(tmp_path/'a.csv')).replace('OUT', str(tmp_path/'out')), rows=pa.table(dict(a=[1])))
    assert sorted(p.name for p in tmp_path.iterdir())==['a.csv'] and len(pd_table)==1

# --- tasks with a definition, and P3 ---------------------------------------------------------------------------------
def task(**change)->dict:
    good = dict(Definition=['Say yes or no.'], Categories=['Other'], Source=['x'], Instances=[dict(input=f'{i}', output=['yes' if i%2 else 'no']) for i in range(20)])
    return {k:v for k,v in (good|{'Positive Examples': [dict(input='a', output='yes')]}|change).items() if v is not ...}

TASKS = dict(
    list=[1], text='x', number=3, null=None, no_definition=task(Definition=...), definition_of_numbers=task(Definition=[1]), no_instances=task(Instances=...),
    instances_mapping=task(Instances={'a': 1}), instance_of_text=task(Instances=['a']), instance_without_output=task(Instances=[dict(input='a')]),
    input_number=task(Instances=[dict(input=1, output=['a'])]), output_number=task(Instances=[dict(input='a', output=1)]), output_numbers=task(Instances=[dict(input='a', output=[1])]),
    output_mapping=task(Instances=[dict(input='a', output={'b': 1})]), categories=task(Categories=[[1]]), source=task(Source=7), positive=task(**{'Positive Examples': 'x'}),
    positive_text=task(**{'Positive Examples': ['x']}), positive_without=task(**{'Positive Examples': [dict(input='a')]}), language=task(Input_language=[3]), labels=task(labels=[1, 'a']), split=task(split='dev'))

@pytest.mark.parametrize('kind', TASKS)
@pytest.mark.parametrize('form', ['lines','files'])
def test_a_task_that_is_malformed_is_named_with_its_place(tmp_path, kind, form):
    import json
    from promptbench.data.natural import natural_suite
    good,bad = json.dumps(task()),json.dumps(TASKS[kind])
    place = tmp_path/('tasks.jsonl' if form=='lines' else 'task002_b.json')
    if form=='lines': place.write_text(good+'\n'+bad+'\n')
    else:
        (tmp_path/'task001_a.json').write_text(good)
        place.write_text(bad)
    with pytest.raises(UserError) as e: natural_suite(place if form=='lines' else tmp_path, positives=1, language=None)
    assert str(place) in str(e.value) and (form=='files' or 'line 2' in str(e.value)) and len(str(e.value))<600, str(e.value)

@pytest.mark.parametrize('text', ['', '{"a": ', '[[[['*99_999, '{"a": "\ud800"}'.encode('utf8','surrogatepass').decode('latin1'), '\x00'*50], ids=['empty','cut','deep','bytes','zeros'])
def test_a_task_that_is_damaged_is_named_with_its_place(tmp_path, text):
    from promptbench.data.natural import natural_suite
    (tmp_path/'task001_a.json').write_bytes(text.encode('latin1'))
    with pytest.raises(UserError, match='task001_a.json'): natural_suite(tmp_path, language=None)

def test_rows_of_p3_that_are_malformed():
    import numpy as np
    from promptbench.data.p3 import Ready, group_choices
    train,judged = Ready('t', 'c', 'train', {}),Ready('t', 'c', 'eval', {})
    good = dict(inputs_pretokenized='a', targets_pretokenized='b', answer_choices=['b','c'])
    assert train.apply(good) and judged.apply(good)
    for odd in (dict(inputs_pretokenized=None), dict(targets_pretokenized=None), dict(targets_pretokenized=1), dict(answer_choices=[1]), dict(answer_choices='bc'),
                dict(targets_pretokenized=['b','c']), dict(targets_pretokenized=[1,2], is_correct=[True,False])):
        with pytest.raises(UserError, match="'t'"): judged.apply(good|odd)
    for lost in ('inputs_pretokenized','targets_pretokenized'):
        with pytest.raises(UserError, match=lost): train.apply({k:v for k,v in good.items() if k!=lost})
    for idx in (np.array([1,2]), np.array([[1,2,3]]), np.array([[.5,1]]), np.array([['a','b']])):
        with pytest.raises(UserError, match='of here must be'): group_choices(idx, np.ones(len(idx), bool), 'here')

def test_folders_of_tables_that_are_malformed(tmp_path):
    from promptbench.data.tables import local_tables
    for text in ('', '[1]', '{"_split": 3}', '{"_split": '):
        (tmp_path/'state.json').write_text(text)
        with pytest.raises(UserError, match='state.json'): local_tables(tmp_path)
    (tmp_path/'state.json').unlink()
    (tmp_path/'train.tfrecord-a-of-b').write_bytes(b'')
    with pytest.raises(UserError, match='train.tfrecord-a-of-b'): local_tables(tmp_path)
