"Suites and templates: folders with something wrong in them, draws, the sandbox, and the real data where it is at hand"
import gzip, json, subprocess, sys, threading, time
from collections import Counter
import pytest
from promptbench.base.core import UserError
from promptbench.data.suite import Dataset, Suite, describe, draw_shots, load_suite, shots_key, show
from promptbench.data.templates import MAX_CHARS, Template, folder_suite, read_templates, write_templates

LIKE = Template('like', '{{text}} Good? ||| {{ answer_choices[label] }}', 'no ||| yes')
FREE = Template('write', 'Write a review. ||| {{text}}')

def put(folder, rows, split='train', templates=(LIKE,), packed=False):
    folder.mkdir(parents=True, exist_ok=True); text = ''.join(json.dumps(r)+'\n' for r in rows)
    if packed: (folder/f'{split}.jsonl.gz').write_bytes(gzip.compress(text.encode()))
    else: (folder/f'{split}.jsonl').write_text(text)
    if templates: write_templates(templates, folder/'templates.yaml', folder.name)

def rows(n): return [dict(text=f'Film {i}.', label=int(i%3==0)) for i in range(n)]

@pytest.fixture
def films(tmp_path):
    "A folder suite of two datasets, one packed"
    put(tmp_path/'s'/'sentiment'/'films', rows(40)); put(tmp_path/'s'/'sentiment'/'films', rows(30), 'validation')
    put(tmp_path/'s'/'sentiment'/'books', rows(40), packed=True, templates=(LIKE,FREE))
    return tmp_path/'s'

def fails(*words):
    "Expect a UserError whose message holds all the words"
    class Expect:
        def __enter__(self): return self
        def __exit__(self, kind, e, tb):
            assert kind is not None, 'no error was raised'
            assert issubclass(kind, UserError), f'{kind.__name__} instead of a UserError: {e}'
            assert all(w in str(e) for w in words), str(e)
            return True
    return Expect()

# --- folders ---------------------------------------------------------------------------------------------------------
def test_a_folder_without_a_manifest(films):
    s = load_suite(films)
    assert [(d.name,d.cluster,d.role,len(d.templates)) for d in s.datasets]==[('books','sentiment','train',2), ('films','sentiment','eval',1)]
    assert s.name=='s' and len(s.task('films/like').examples('validation'))==30
    assert s.task('books/write').examples('train', 1)[0].choices is None

def test_a_manifest_decides(films):
    (films/'manifest.json').write_text(json.dumps([dict(name='films', cluster='sentiment', role='dev')]))
    assert [(d.name,d.role) for d in load_suite(films).datasets]==[('films','dev')]

def test_one_dataset_as_the_folder(films):
    assert [d.name for d in load_suite(films/'sentiment'/'films').datasets]==['films']
    assert {d.name for d in load_suite(films/'sentiment').datasets}=={'books','films'}

def test_templates_beside_the_suite(tmp_path):
    put(tmp_path/'s'/'c'/'d', rows(4), templates=())
    beside = tmp_path/'templates'/'d'; beside.mkdir(parents=True); write_templates([LIKE], beside/'templates.yaml', 'd')
    assert load_suite(tmp_path/'s').task('d/like').examples('train', 1)[0].target=='yes'

def test_original_task_templates_by_default(tmp_path):
    original = Template('orig', LIKE.jinja, LIKE.answer_choices, dict(original_task=True))
    put(tmp_path/'c'/'d', rows(4), 'validation', templates=(LIKE,original,FREE))
    assert [t.name for t in folder_suite(tmp_path).datasets[0].templates]==['orig']
    assert [t.name for t in folder_suite(tmp_path, templates='all').datasets[0].templates]==['like','orig']   # eval: without the one that cannot be ranked

def test_missing_suite_folder():
    with fails("one of ['microworld', 'p3', 'hub', 'ni', 'bigbench'] or a folder", "'/no/such/suite'"): load_suite('/no/such/suite')

def test_unknown_suite_name():
    with fails("['microworld', 'p3', 'hub', 'ni', 'bigbench']", "'mikroworld'"): load_suite('mikroworld')

def test_a_file_is_not_a_suite(films):
    with fails('neither'): load_suite(films/'sentiment'/'films'/'train.jsonl')

def test_wrong_option(films):
    with fails('option', "'template'"): load_suite(films, template='all')
    with fails("templates must be one of ['original', 'all']"): load_suite(films, templates='some')

def test_empty_folder(tmp_path):
    with fails('must hold CLUSTER/DATASET'): load_suite(tmp_path)

def test_dataset_without_templates(tmp_path):
    put(tmp_path/'c'/'d', rows(3), templates=())
    with fails('dataset d has no templates', 'templates.yaml'): load_suite(tmp_path)

def test_template_without_choices_in_an_evaluation_dataset(tmp_path):
    put(tmp_path/'c'/'d', rows(3), 'validation', templates=(FREE,))
    with fails("role 'eval'", 'answer_choices', "['write']"): load_suite(tmp_path)

def test_broken_json_line(films):
    p = films/'sentiment'/'films'/'train.jsonl'; p.write_text(p.read_text()+'{"text": "cut of')
    s = load_suite(films)                       # nothing is read before it is needed
    with fails(str(p), 'line 41'): s.task('films/like').examples('train')

def test_a_line_that_is_no_object(films):
    (films/'sentiment'/'films'/'train.jsonl').write_text('[1]\n')
    with fails('line 1', 'got list'): load_suite(films).task('films/like').shots(1, 0)

@pytest.mark.parametrize('data', [b'\x1f\x8b\x08\x00cut', b'plain text'])
def test_broken_gzip(tmp_path, data):
    put(tmp_path/'c'/'d', rows(3)); (tmp_path/'c'/'d'/'train.jsonl').unlink(); (tmp_path/'c'/'d'/'train.jsonl.gz').write_bytes(data)
    with fails('cannot read', 'train.jsonl.gz'): load_suite(tmp_path).tasks()[0].examples('train')

def test_text_that_is_not_utf8(films):
    (films/'sentiment'/'films'/'train.jsonl').write_bytes(b'{"text": "caf\xe9"}\n')
    with fails('line 1', 'not UTF-8', '0xe9'): load_suite(films).task('films/like').examples('train')

def test_two_files_for_one_split(films):
    put(films/'sentiment'/'films', rows(3), packed=True)
    with fails('one file per split', 'train.jsonl.gz'): load_suite(films)

@pytest.mark.parametrize('text,words', [('{', 'must be a list'), ('[{"name": "films"}]', 'cluster'), ('[{"name": "gone", "cluster": "sentiment", "role": "train"}]', 'gone'),
                                        ('[{"name": "films", "cluster": "sentiment", "role": "test"}]', "role of films must be one of")])
def test_broken_manifest(films, text, words):
    (films/'manifest.json').write_text(text)
    with fails(words): load_suite(films)

@pytest.mark.parametrize('text', ['a: [', 'just text', 'templates: [1]', 'templates: {x: {name: n}}', 'templates: {x: {name: n, jinja: "a ||| b", answer_choices: [a, b]}}',
                                  'templates: !!python/object/new:os.system [echo]', 'templates: {x: !Other {name: n, jinja: a}}'])
def test_broken_templates(films, text):
    (films/'sentiment'/'films'/'templates.yaml').write_text(text)
    with fails('templates.yaml'): load_suite(films)

def test_missing_split(films):
    with fails("books must have a split 'validation'", "['train']"): load_suite(films).task('books/like').examples('validation')

# --- draws and baselines ---------------------------------------------------------------------------------------------
def test_more_shots_than_examples(films):
    task = load_suite(films).task('films/like')
    with fails('41 shots', 'only 40 render'): task.shots(41, seed=0)
    assert len(task.shots(40, seed=0))==40 and task.shots(0, seed=0)==[]
    with fails('0 or more'): task.shots(-1, seed=0)

def test_draws_are_nested_and_belong_to_the_template(films):
    s = load_suite(films); like,write = s.tasks(dataset='books')
    for balanced in (False,True): assert like.shots(5, 3, balanced=balanced)==like.shots(20, 3, balanced=balanced)[:5]
    assert [e.id for e in like.shots(8, 0)]!=[e.id for e in write.shots(8, 0)]
    assert len({e.id for e in like.shots(40, 0)})==40
    with fails('need answer choices', 'books/write'): write.shots(4, 0, balanced=True)

def test_draws_are_uniform(films):
    task = load_suite(films).task('films/like')
    drawn = Counter(e.id for seed in range(1000) for e in task.shots(4, seed))
    assert len(drawn)==40 and 60<min(drawn.values()) and max(drawn.values())<145   # 100 expected, standard deviation 9.5

def test_balanced_draws(films):
    task = load_suite(films).task('films/like')
    assert Counter(e.gold for e in task.shots(16, 0, balanced=True))=={0:8, 1:8}
    assert Counter(e.gold for e in task.shots(40, 0, balanced=True))=={0:26, 1:14}   # a class that runs out gives way to the other

def test_draws_are_the_same_in_another_process(films):
    code = f"from promptbench.data.suite import load_suite; print([e.id for e in load_suite({str(films)!r}).task('films/like').shots(6, 1)])"
    out = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout.strip()
    assert out==str([e.id for e in load_suite(films).task('films/like').shots(6, 1)])

def test_skipped_rows_are_counted_and_keep_their_ids():
    odd = Template('odd', '{% if i is odd %}{{i}} ||| {{ "B" if i==7 else "A" }}{% endif %}', 'A ||| C')
    task = Suite('s', [Dataset('d', 'c', 'eval', dict(validation=[dict(i=i) for i in range(10)]), [odd])]).task('d/odd')
    assert [e.id for e in task.examples('validation')]==['d/validation/1','d/validation/3','d/validation/5','d/validation/9']
    assert task.counts()==dict(rows=10, used=4, skipped=6)
    assert (task.chance, task.majority)==(.5, 1.)
    assert [odd.problem(dict(i=i)) for i in (1,2,7)]==[None, 'empty source or target', 'target is not among the choices']

def test_chance_where_the_number_of_choices_differs():
    t = Template('t', '? ||| {{answer_choices[0]}}', '{{ options | join(" ||| ") }}')
    task = Suite('s', [Dataset('d', 'c', 'eval', dict(validation=[dict(options=['a','b']), dict(options=list('abcd'))]), [t])]).task('d/t')
    assert task.chance==(1/2+1/4)/2

def test_fingerprint_follows_what_is_asked(films):
    first = load_suite(films).fingerprint()
    assert first==load_suite(films).fingerprint()
    p = films/'sentiment'/'films'/'validation.jsonl'; text = p.read_text()
    p.write_text(text.replace('Film 17.', 'Film seventeen.')); other = load_suite(films).fingerprint(); assert other!=first
    p.write_text(text); assert load_suite(films).fingerprint()==first
    write_templates([Template('like', LIKE.jinja+' ', LIKE.answer_choices)], films/'sentiment'/'films'/'templates.yaml', 'films')
    assert load_suite(films).fingerprint()!=first

def test_describe_and_show(films):
    s = load_suite(films); books,film = describe(s)
    assert film==dict(cluster='sentiment', dataset='films', role='eval', templates=1, train=40, validation=30, chance=.5, majority=20/30)
    assert books['chance'] is None and books['validation']==0
    assert 'Film 0. Good?' in show(s.task('films/like')) and '* yes' in show(s.task('films/like'))
    with fails("task must be one of"): s.task('films/likes')

def test_one_draw_for_all_templates_of_a_dataset(films):
    s = load_suite(films); like,write = s.tasks(dataset='books')
    assert [e.id for e in like.shots(8, 0, per='dataset')]==[e.id for e in write.shots(8, 0, per='dataset')]
    assert like.shots(4, 0, per='dataset')==like.shots(8, 0, per='dataset')[:4] and like.shots(8, 0, per='dataset')!=like.shots(8, 1, per='dataset')
    with fails('per must be one of'): like.shots(8, 0, per='suite')

def test_a_result_can_name_its_shots(films):
    like = load_suite(films).task('books/like'); keys = {(k,seed): shots_key(like.shots(k, seed)) for k in (4,8) for seed in (0,1)}
    assert len(set(keys.values()))==4 and keys[4,0]==shots_key(like.shots(8, 0)[:4]) and len(keys[4,0])==12

def as_file(path, rs):
    import pyarrow as pa, pyarrow.csv as pc, pyarrow.parquet as pq
    t = pa.Table.from_pylist(rs)
    if path.suffix=='.parquet': pq.write_table(t, path)
    elif path.suffix=='.csv': pc.write_csv(t, path)
    else: path.write_bytes(gzip.compress(''.join(json.dumps(r)+'\n' for r in rs).encode()))

@pytest.mark.parametrize('ending', ['csv','parquet','jsonl.gz'])
def test_every_kind_of_file_gives_the_same_suite(films, ending):
    f = films/'sentiment'/'films'; rs = [dict(text=f'Film "{i}", a\nfilm', label=i%2) for i in range(9)]
    put(f, rs); plain = load_suite(films).task('films/like').examples('train'); mark = load_suite(films).fingerprint()
    (f/'train.jsonl').unlink(); as_file(f/f'train.{ending}', rs); s = load_suite(films)
    assert s.task('films/like').examples('train')==plain and s.fingerprint()==mark and s.task('films/like').size('train')==9

def test_a_plan(films):
    (films/'suite.yaml').write_text('name: mine\nroles: {books: dev}\ncaps: {sentiment: 10, books: {train: 4}}\nbaselines: {films: 0.25}\ngroups: {films: art, books: art}\ntemplates: all\n')
    write_templates([LIKE], films/'sentiment'/'books'/'templates.yaml', 'books'); s = load_suite(films)
    assert (s.name, s.groups)==('mine', dict(films='art', books='art')) and [(d.name, d.role, len(d.records['train'])) for d in s.datasets]==[('books','dev',4), ('films','eval',10)]
    assert s.task('films/like').chance==.25 and s.notes==[] and s.task('books/like').baseline is None

def test_a_note_without_a_plan(films, capsys, monkeypatch):
    monkeypatch.delenv('PROMPTBENCH_QUIET', raising=False); s = load_suite(films); load_suite(films)
    assert 'no suite.yaml' in s.notes[0] and 'films' in s.notes[0] and capsys.readouterr().err.count('no suite.yaml')==1

# --- templates -------------------------------------------------------------------------------------------------------
def test_missing_field_names_template_field_row_and_fields(films):
    write_templates([Template('like', '{{body}} ||| {{answer_choices[label]}}', 'no ||| yes')], films/'sentiment'/'films'/'templates.yaml', 'films')
    with fails("template 'like'", "'body'", "['label', 'text']", 'films/validation/0'): load_suite(films).task('films/like').examples('validation')

def test_a_separator_in_a_field_is_text():
    t = Template('t', '{{a}} ||| {{answer_choices[1]}}', '{{b}} ||| {{c}}')
    assert t.apply(dict(a='x ||| y', b='p|||q', c='r'))==('x ||| y', 'r', ('p|||q','r'), 1)
    assert t.apply(dict(a='x', b='r', c='p|||q'))==('x', 'p|||q', ('r','p|||q'), 1)
    deep = Template('t', '{{a.b[0]}} ||| z'); assert deep.apply(dict(a=dict(b=['x|||y'])))==('x|||y', 'z', None, None)

def test_the_record_is_left_alone():
    r = dict(xs=['b','a'], d=dict(k='v|||w')); copy = json.loads(json.dumps(r))
    Template('t', '{{xs|sort|join}}{{d.k}} ||| x').apply(r); assert r==copy
    Template('t', '{{xs.append(1)}}{{d.update({"k": 1})}} ||| x').apply(r); assert r==copy   # promptsource's templates do this to keep values
    with fails("template 't'"): Template('t', '{{xs.clear()}} ||| x').apply(r)

def test_filters_of_promptsource():
    t = Template('t', '{{ xs | most_frequent | choice }} {% for a,b in zip(xs, ys) %}{{a}}{{b}}{% endfor %} ||| {{ xs|length }}')
    assert t.apply(dict(xs=['a','b','b'], ys=[1,2,3]))[:2]==('b a1b2b3', '3')

def test_random_choices_depend_on_the_record_only():
    t = Template('t', 'x ||| {{ range(1000)|choice }} {{ range(1000)|random }}'); a,b = t.apply(dict(i=1)),t.apply(dict(i=2))
    assert a!=b and a==t.apply(dict(i=1)) and len(set(a[1].split()))==2
    assert Template('other', t.jinja).apply(dict(i=1))!=a

HOSTILE = ["{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x %}{{ns.x}}{{ns.x}}{% endset %}{% endfor %}", "{% macro d(s) %}{{s}}{{s}}{% endmacro %}{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x=d(ns.x) %}{% endfor %}",
    "{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x=ns.x~ns.x %}{% endfor %}", "{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x=ns.x+ns.x %}{% endfor %}", "{% set ns=namespace(x='a'*1) %}", "{% set ns=namespace(x='aa') %}{% for i in range(60) %}{% set ns.x=ns.x.replace('a','aa') %}{% endfor %}",
    "{% set ns=namespace(x='aa') %}{% for i in range(60) %}{% set ns.x=ns.x|replace('a','aa') %}{% endfor %}", "{% set ns=namespace(x='aa') %}{% for i in range(60) %}{% set ns.x=ns.x.join(['','','']) %}{% endfor %}", "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ns.x}}",
    "{% set ns=namespace(x=[1],y=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% set ns.y=[ns.y,ns.y] %}{% endfor %}{{ns.x==ns.y}}", "{% set d={} %}{% for i in range(60) %}{% set _=d.update({'a':[d.a,d.a] if d else [1,1]}) %}{% endfor %}{{d}}", "{% set x=range(99999)|list %}{% for i in range(99999) %}{% if x[::2]==x[1::2] %}{% endif %}{% endfor %}",
    "{% set x='a'*1 %}{{x}}", "{{ (1).to_bytes(1000000000,'big') }}", "{{ 2.5|round(100000000,'ceil') }}", "{% for i in range(99999) %}{{ [9]|map('replace','',('b','b')) }}{% endfor %}", "{% filter upper %}{% for i in range(99999) %}"+'x'*1000+"{% endfor %}{% endfilter %}", "{% call(x) d() %}{% endcall %}{{ caller }}",
    "{{ x.mro() }}", "{{ ().__class__.__base__ }}", "{{ request|attr('application') }}", "{{ get_flashed_messages.__globals__ }}", "{{ ''['__class__'] }}", "{{ namespace.mro }}", "{{ range.__self__ }}", "{{ dict.__base__ }}", "{{ x.__reduce_ex__(2) }}", "{{ _run.record }}{{ nothing }}", "{% set x = joiner %}{{ x() }}", "{{ ['a']|map('attr','__class__')|list }}",
    "{{ ''.__class__.__mro__ }}", "{{ x.__init__.__globals__ }}", "{{ (x|attr('__class__')) }}", "{{ '{0.__class__}'.format(x) }}", "{% include 'a' %}", "{% import 'os' as os %}",
    "{{ 'a'*1000000000 }}", "{{ '%1000000000d' % 1 }}", "{{ ('a'|attr('format'))() }}", "{{ [1]*1000000000 }}", "{{ 10**100000000 }}", "{{ range(1000000000)|list }}", "{{ 'a'.center(1000000000) }}", "{{ 'a'|center(1000000000) }}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "{% macro f(n) %}{{f(n)}}{% endmacro %}{{f(1)}}", "{% macro f() %}{{f()}}{{f()}}{% endmacro %}{{f()}}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "{% for a in range(2000) %}"+'x'*1000+"{% endfor %}", "{{ lipsum(n=100000) }}", "{{ cycler.__init__ }}", "{{ self }}{{ self._TemplateReference__context }}"]

@pytest.mark.parametrize('text', HOSTILE)
def test_hostile_templates_end_soon_with_an_error(text):
    t = time.process_time()
    with fails("template 'bad'"): Template('bad', text+' ||| x').apply(dict(x=1))
    assert time.process_time()-t<3   # the slowest takes 0.6 s

@pytest.mark.parametrize('text', ["{{ [{}]|map(attribute='__class__')|list }}", "{{ [{}]|groupby('__class__') }}", "{{ ['a']|map(attribute='__class__')|first|default(1) }}", "{{ [1]|sort(attribute='__class__') }}", "{{ namespace }}", "{{ dict }}", "{{ loop|default(1) }}"])
def test_what_does_not_fail_tells_nothing(text):
    try: assert not any(w in Template('bad', text+' ||| x').apply(dict(x=1))[0] for w in ("<class 'dict'>]", "<class 'str'>]", 'subclasses'))
    except UserError: pass

def test_the_limits_hold_in_threads_too():
    got = []
    def work():
        try: Template('bad', '{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %} ||| x').apply({})
        except UserError as e: got.append(str(e))
    th = threading.Thread(target=work); th.start(); th.join(20)
    assert len(got)==1 and 'steps' in got[0]

def test_long_documents_render():
    long = 'word '*(MAX_CHARS//10)
    assert Template('t', '{{text}} ||| x').apply(dict(text=long))[0]==long.strip()
    with fails('longer than'): Template('t', '{{text}}{{text}}{{text}} ||| x').apply(dict(text=long))

def test_three_parts_are_refused():
    with fails('gives 3 parts'): Template('t', 'a ||| b ||| c').apply({})

def test_yaml_round_trip(tmp_path):
    ts = [Template('ä / b', 'Zeile\n\n  zwei ||| {{ x }}', 'ja ||| nein', dict(original_task=True, metrics=['Accuracy'], id='7', reference='mine')), FREE]
    write_templates(ts, tmp_path/'templates.yaml', 'd', 'sub'); back = read_templates(tmp_path/'templates.yaml')
    assert [(t.name,t.jinja,t.answer_choices) for t in back]==[(t.name,t.jinja,t.answer_choices) for t in ts]
    assert back[0].metadata==ts[0].metadata

class Theirs:
    "promptsource reads its files into objects, by YAML tag"
    @classmethod
    def read(cls, path):
        import yaml
        class Loader(yaml.SafeLoader): pass
        for tag in ('!Template','!TemplateMetadata'): Loader.add_constructor(tag, lambda l, n: {k: v for k,v in l.construct_mapping(n, deep=True).items()})
        return yaml.load(path.read_text(encoding='utf8'), Loader)

def test_promptsource_reads_what_is_written(tmp_path):
    ts = [Template('a', 'x {{y}}\n\n||| z', 'z ||| w', dict(original_task=True, choices_in_prompt=False, metrics=['Accuracy'], languages=['en'])), Template('b', 'x ||| y')]
    write_templates(ts, tmp_path/'t.yaml', 'glue', 'rte'); d = Theirs.read(tmp_path/'t.yaml')
    assert (d['dataset'], d['subset'])==('glue','rte') and '!Template' in (tmp_path/'t.yaml').read_text()
    a,b = d['templates'].values(); assert set(a)=={'answer_choices','id','jinja','metadata','name','reference'} and all(t['id']==k for k,t in d['templates'].items())
    assert a['jinja']==ts[0].jinja and a['metadata']==dict(original_task=True, choices_in_prompt=False, metrics=['Accuracy'], languages=['en']) and b['answer_choices'] is None

def test_all_of_promptsources_files_go_round(shared, tmp_path):
    files = sorted((shared/'templates').rglob('templates.yaml')); assert len(files)>=39
    for f in files[::4]:
        ts = read_templates(f); write_templates(ts, tmp_path/'t.yaml', 'd'); theirs = Theirs.read(f)['templates']
        assert [(t.name,t.jinja,t.answer_choices,t.metadata) for t in read_templates(tmp_path/'t.yaml')]==[(t.name,t.jinja,t.answer_choices,t.metadata) for t in ts]
        assert [(t['name'],t['jinja']) for t in Theirs.read(tmp_path/'t.yaml')['templates'].values()]==[(t['name'],t['jinja']) for t in theirs.values()]

def test_rendering_is_fast():
    record = dict(text='The film was long. '*5, label=1); t0 = time.process_time()
    for i in range(5000): LIKE.apply(record)
    assert time.process_time()-t0<3   # 0.1 s on a quiet machine

# --- the real data ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def real(shared): return load_suite(shared/'real')

def test_real_counts(real, shared):
    manifest = json.loads((shared/'real'/'manifest.json').read_text())
    assert Counter(d.role for d in real.datasets)==dict(train=31, eval=10)
    assert {d.cluster for d in real.datasets if d.role=='eval'}.isdisjoint({d.cluster for d in real.datasets if d.role=='train'})
    for d,m in zip(real.datasets, manifest, strict=True):
        assert (d.name, len(d.records['train']), len(d.records['validation']))==(m['name'], m['train'], m['validation'])
        assert {t.name for t in d.templates}==set(m['original_task_templates_usable']) or (m['n_original_task']==0 and len(d.templates)==m['n_templates'])

def test_real_templates_render(real, shared):
    "280 original-task templates and the five of kilt_hotpotqa render every row; the five others skip some, as the coverage table says"
    manifest = {m['name']: m for m in json.loads((shared/'real'/'manifest.json').read_text())}
    full = Counter()
    for t in real.tasks(): full[t.dataset] += all(t.wording.problem(r) is None for s in ('validation','train') for r in t.data.records[s][:100])
    assert sum(full.values())==285 and full.pop('kilt_hotpotqa')==5
    assert full=={n: m['n_original_task_fully_rendering'] for n,m in manifest.items() if n in full}

def test_real_chance_and_majority(real, shared):
    manifest = {m['name']: m for m in json.loads((shared/'real'/'manifest.json').read_text())}
    for row in describe(Suite('eval', [d for d in real.datasets if d.role=='eval'])):
        m = manifest[row['dataset']]
        assert row['chance']==pytest.approx(m['random_accuracy'], abs=1e-4)
        assert row['majority']==pytest.approx(m['majority_accuracy_validation'], abs=1e-3), row

def test_real_shots(real):
    for t in real.tasks('eval'): assert len({e.id for e in t.shots(16, 0)})==16

def test_real_target_outside_the_choices_is_skipped(real):
    counts = real.task('commonsense_qa/question_to_answer_index').counts()
    assert counts==dict(rows=500, used=392, skipped=108)
