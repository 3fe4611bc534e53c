"More than forty kinds of broken suites: each gives one clear error with its place and a remedy, is told by `suites check`, and is left out and counted on request"
import gzip, json, os, tracemalloc
import pyarrow as pa, pyarrow.parquet as pq, pytest
from promptbench.data.checks import check_suite
from promptbench.base.core import UserError
from promptbench.data.suite import load_suite
from promptbench.data.templates import Template, write_templates

LIKE = Template('like', '{{text}} Good? ||| {{ answer_choices[label] }}', 'no ||| yes')
PLAIN = Template('plain', 'Is this good or bad? {{text}} ||| {{ answer_choices[label] }}', 'bad ||| good')

def rows(n): return [dict(text=f'Film {i}.', label=i%2) for i in range(n)]
def lines(rs): return ''.join(json.dumps(r)+'\n' for r in rs).encode()
GOOD = lines(rows(12))

@pytest.fixture
def folder(tmp_path):
    "Two datasets in order: films for evaluation, which the cases break, and books for training"
    for name,splits in (('films',('train','validation')), ('books',('train',))):
        p = tmp_path/'s'/'sentiment'/name; p.mkdir(parents=True); write_templates([LIKE,PLAIN], p/'templates.yaml', name)
        for s in splits: (p/f'{s}.jsonl').write_bytes(lines(dict(r, text=f'{s} {r["text"]}') for r in rows(12)))
    return tmp_path/'s'

def records(data, ending='jsonl'):
    "Replace the training rows of films"
    def make(folder):
        f = folder/'sentiment'/'films'; (f/'train.jsonl').unlink(); p = f/f'train.{ending}'
        data(p) if callable(data) else p.write_bytes(data)
    return make

def one(**change): return records(lines([*rows(5), {k:v for k,v in dict(text='Odd.', label=1, **{}).items()}|change]))
def parquet(**columns): return records(lambda p: pq.write_table(pa.table(columns), p), 'parquet')
def yaml(text): return lambda folder: (folder/'sentiment'/'films'/'templates.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
def template(jinja, choices='no ||| yes'):
    return yaml('templates:\n  a: !Template\n    name: like\n    jinja: '+json.dumps(jinja)+('' if choices is None else '\n    answer_choices: '+json.dumps(choices))+'\n')
def plan(name, text): return lambda folder: (folder/name).write_text(text)
def extra(folder): (folder/'sentiment'/'films'/'train.csv').write_text('text,label\na,1\n')
def twin(folder): import shutil; shutil.copytree(folder/'sentiment'/'films', folder/'other'/'films')
BOMB = 'a: &a [x,x,x,x,x,x,x,x,x]\n'+''.join(f'{c}: &{c} [*{b},*{b},*{b},*{b},*{b},*{b},*{b},*{b},*{b}]\n' for b,c in zip('abcdefghi','bcdefghij'))
DOUBLE = '{% set ns = namespace(x=text) %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}{{ ns.x }} ||| no'

# name: how to break films, words of the message, what remains with on_error='skip' (rest: films without its bad part; books: films is gone; None: still an error)
BAD = {
    'broken line': (records(GOOD+b'{"text": "x", "label": 1,,}\n'+GOOD), ('train.jsonl, line 13', 'JSON', 'mend or remove'), 'rest'),
    'last line cut off': (records(GOOD+b'{"text": "cut of'), ('line 13', 'JSON', 'mend or remove'), 'rest'),
    'line that is a list': (records(GOOD+b'[1]\n'), ('line 13', 'got list', 'write the fields'), 'rest'),
    'record without fields': (records(GOOD+b'{}\n'), ('line 13', 'without fields', 'remove'), 'rest'),
    'empty file': (records(b''), ('train.jsonl', 'no records', 'fill it'), 'rest'),
    'blank lines only': (records(b'\n \n\n'), ('no records', 'fill it'), 'rest'),
    'gzip cut short': (records(gzip.compress(lines(dict(text=os.urandom(30).hex(), label=1) for _ in range(400)))[:9000], 'jsonl.gz'), ('train.jsonl.gz', 'cannot read on after line', 'cut short'), 'rest'),
    'no gzip in spite of its name': (records(GOOD, 'jsonl.gz'), ('train.jsonl.gz', 'cannot read', 'no gzip'), 'rest'),
    'gzip without its ending': (records(gzip.compress(GOOD)), ('gzip', 'ending .gz'), 'rest'),
    'parquet named jsonl': (records(b'PAR1....'), ('Parquet', '.parquet'), 'rest'),
    'latin-1': (records(GOOD+b'{"text": "caf\xe9", "label": 1}\n'), ('line 13', 'not UTF-8', '0xe9', 'save the file'), 'rest'),
    'utf-16': (records(GOOD.decode().encode('utf-16')), ('UTF-16', 'save it as UTF-8'), 'rest'),
    'two byte order marks': (records(b'\xef\xbb\xbf'*2+GOOD), ('line 1', 'two byte order marks', 'UTF-8'), 'rest'),
    'field of 50 MB': (records(GOOD+lines([dict(text='x'*50_000_000, label=1)])), ('line 13', "field 'text'", '50,000,000', 'cut'), 'rest'),
    'half a character': (records(GOOD+b'{"text": "\\ud800", "label": 1}\n'), ('line 13', 'surrogate', 'again'), 'rest'),
    'JSON nested too deeply': (records(GOOD+b'{"text": '+b'['*100_000+b'\n'), ('line 13', 'nested too deeply', 'flatten'), 'rest'),
    'semicolons': (records(b'text;label\na;1\n', 'csv'), ('train.csv, row 1', 'semicolons', 'commas'), 'rest'),
    'csv row with a comma too many': (records(b'text,label\na,1\nb, c,0\nd,1\n', 'csv'), ('train.csv, row 3', 'has 3 fields, the header has 2', 'quotation'), 'rest'),
    'csv column twice': (records(b'text,text\na,1\n', 'csv'), ("['text'] come twice", 'rename'), 'rest'),
    'csv column without a name': (records(b'text,\na,1\n', 'csv'), ('field 2 has no name', 'name every column'), 'rest'),
    'csv quotation not closed': (records(b'text,label\n"a,1\nb,0\n', 'csv'), ('train.csv', 'quotation'), 'rest'),
    'csv in Windows-1252': (records(b'text,label\nok,1\nna\xefve,1\n', 'csv'), ('train.csv, row 3', 'not UTF-8', 'Windows-1252'), 'rest'),
    'csv label empty': (records(b'text,label\na,1\nb,\n', 'csv'), ('train.csv, record 2', "field 'label' is None", 'mend the record'), 'rest'),
    'parquet cut short': (records(b'PAR1'+b'x'*50, 'parquet'), ('train.parquet', 'Parquet', 'again'), 'rest'),
    'parquet of bytes': (parquet(text=[b'a'], label=[1]), ('train.parquet', "field 'text'", 'bytes', 'as text'), 'rest'),
    'two files for a split': (extra, ('one file per split', 'train.csv', 'remove'), 'books'),
    'missing field': (records(lines([*rows(5), dict(label=1)])), ('train.jsonl, record 6', "'text' is undefined", "has ['label']"), 'rest'),
    'unknown label': (one(label=7), ('record 6', "field 'label' is 7", 'choices 0 to 1', 'mend'), 'rest'),
    'hidden label': (one(label=-1), ('record 6', "field 'label' is -1", 'mend'), 'rest'),
    'NaN label': (one(label=float('nan')), ('line 6', 'NaN is no value of JSON', 'mend'), 'rest'),
    'null label': (one(label=None), ('record 6', "field 'label' is None", 'mend'), 'rest'),
    'label of another kind': (one(label='positive'), ('record 6', "field 'label' is 'positive'", 'mend'), 'rest'),
    'no templates': (lambda f: (f/'sentiment'/'films'/'templates.yaml').unlink(), ('films has no templates', 'put a templates.yaml'), 'books'),
    'templates that are no YAML': (yaml('templates: [a'), ('templates.yaml', 'line 1', 'promptsource'), 'books'),
    'YAML that builds an object': (yaml('templates: !!python/object/apply:os.system ["touch owned"]'), ('templates.yaml', 'promptsource'), 'books'),
    'unknown tag': (yaml('templates: {a: !Other {name: n, jinja: "x ||| y"}}'), ('templates.yaml', '!Other'), 'books'),
    'the same key twice': (yaml('templates:\n  a: !Template {name: n, jinja: "x ||| y"}\n  a: !Template {name: m, jinja: "x ||| y"}'), ("'a' comes twice", 'line 2'), 'books'),
    'template names twice': (yaml('templates:\n  a: !Template {name: n, jinja: "{{text}} ||| no", answer_choices: "no ||| yes"}\n  b: !Template {name: n, jinja: "x ||| y"}'), ("'n' comes twice", 'rename'), 'rest'),
    'alias bomb': (yaml(BOMB+'templates: {t: !Template {name: n, jinja: "x ||| y", answer_choices: *j}}'), ('templates.yaml', 'at most 1,000,000 values', 'smaller'), 'books'),
    'templates in Latin-1': (yaml(b'templates:\n  a: !Template {name: caf\xe9, jinja: "x ||| y"}'), ('templates.yaml, line 2', 'UTF-8', '0xe9'), 'books'),
    'choices as a list': (yaml('templates: {a: !Template {name: n, jinja: "x ||| y", answer_choices: [a, b]}}'), ("answer_choices of 'n'", 'no ||| yes'), 'books'),
    'no separator': (template('{{text}} good?'), ("'like'", '|||', 'write'), 'books'),
    'three parts': (template('{{text}} ||| b ||| no'), ("'like'", 'gives 3 parts', 'keep one'), 'books'),
    'no Jinja': (template('{% if text %} x ||| no'), ("'like'", 'line 1 is wrong', 'mend'), 'books'),
    'unknown filter': (template('{{text|shuffle}} ||| no'), ("'like'", 'shuffle'), 'books'),
    'Jinja nested too deeply': (template('{{ '+'('*5000+'1'+')'*5000+' }} ||| no'), ("'like'", 'nested too deeply', 'simpler'), 'books'),
    'loops for ever': (template('{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}{{text}} ||| no'), ("'like'", 'steps', 'mend it'), 'books'),
    'doubles its text': (template(DOUBLE), ("'like'", 'characters', 'mend it'), 'books'),
    'way out by a class': (template("{{ ''.__class__.__mro__[1].__subclasses__() }}{{text}} ||| no"), ("'like'", 'unsafe'), 'books'),
    'way out by a global': (template("{{ namespace.__init__.__globals__ }}{{text}} ||| no"), ("'like'", 'unsafe'), 'books'),
    'way out by a format': (template("{{ '{0.__class__}'.format(text) }} ||| no"), ("'like'", 'unsafe'), 'books'),
    'choices that repeat': (template('{{text}} ||| no', 'no ||| yes ||| no'), ('films', "{'like': 'no'}", 'differ', 'mend'), 'books'),
    'no choices to rank': (template('{{text}} ||| no', None), ("role 'eval'", "['like']", 'add choices'), 'books'),
    'target never among the choices': (template('{{text}} ||| perhaps'), ('films/like', 'skips all 12 rows', 'look at the records'), None),
    'unknown key in the plan': (plan('suite.yaml', 'rolls: {films: train}'), ('suite.yaml', "['rolls']", 'roles'), None),
    'unknown dataset in the plan': (plan('suite.yaml', 'roles: {flims: train}'), ('suite.yaml', "'flims'", 'films'), None),
    'plan that is a list': (plan('suite.yaml', '- films'), ('suite.yaml', 'holds list'), None),
    'cap of none': (plan('suite.yaml', 'caps: {films: 0}'), ('suite.yaml', 'cap of films', 'number of records'), None),
    'manifest that is no JSON': (plan('manifest.json', '[{'), ('manifest.json', 'must be a list'), None),
    'manifest with a lost dataset': (plan('manifest.json', '[{"name": "gone", "cluster": "c", "role": "train"}]'), ('manifest.json', 'gone', 'restore'), None),
    'one dataset name twice': (twin, ("['films'] come twice", 'rename'), None),
}

def use(folder, **options):
    "Load and read everything; the number of examples by dataset"
    suite = load_suite(folder, **options); n = {}
    for t in suite.tasks():
        for s in t.data.records: n[t.dataset] = n.get(t.dataset, 0)+len(t.examples(s))
    return suite,n

def tree(folder): return sorted((str(p), p.stat().st_size) for p in folder.rglob('*'))

def test_there_are_forty_kinds(): assert len(BAD)>=40

def test_what_is_whole_passes(folder):
    assert use(folder)[1]==dict(books=24, films=48) and not [p for p in check_suite(folder) if p.level=='error']

@pytest.mark.parametrize('kind', BAD, ids=lambda k: k.replace(' ','-'))
def test_one_clear_error(folder, kind, capsys):
    make,words,_ = BAD[kind]; make(folder); before = tree(folder)
    with pytest.raises(UserError) as e: use(folder)
    text = str(e.value)
    assert all(w in text for w in words), text
    assert len(text)<900 and 'Traceback' not in text and '\n\n' not in text and tree(folder)==before

@pytest.mark.parametrize('kind', BAD, ids=lambda k: k.replace(' ','-'))
def test_left_out_and_counted_on_request(folder, kind):
    make,_,left = BAD[kind]; make(folder); before = tree(folder)
    if left is None:
        with pytest.raises(UserError): use(folder, on_error='skip')
        return
    suite,n = use(folder, on_error='skip')
    rows_left_out = sum(t.counts(s)['skipped'] for t in suite.tasks(dataset='films') for s in t.data.records) if left=='rest' else 0
    assert n['books']==24 and ('films' in n)==(left=='rest') and len(suite.skipped)+rows_left_out>=1 and tree(folder)==before

@pytest.mark.parametrize('kind', [k for k in BAD if k not in ('one dataset name twice','choices that repeat')], ids=lambda k: k.replace(' ','-'))
def test_the_check_tells_it(folder, kind):
    BAD[kind][0](folder); told = [p for p in check_suite(folder) if p.level=='error']
    assert told and len(told)<=4 and all('\n\n' not in str(p) and p.todo for p in told), [str(p) for p in told]

def test_a_bomb_stays_small():
    "Memory of a rendering that wants to double a text sixty times"
    tracemalloc.start()
    with pytest.raises(UserError): Template('d', DOUBLE, 'no ||| yes').apply(dict(text='x'*1000))
    assert tracemalloc.get_traced_memory()[1]<100e6; tracemalloc.stop()

def test_one_byte_order_mark_is_fine(folder):
    records(b'\xef\xbb\xbf'+GOOD)(folder); assert use(folder)[1]['films']==48
    (folder/'sentiment'/'films'/'train.jsonl').unlink(); (folder/'sentiment'/'films'/'train.csv').write_bytes(b'\xef\xbb\xbftext,label\r\n"a, b",1\r\nc,0\r\n')
    assert [e.source for e in load_suite(folder).task('films/like').examples('train')]==['a, b Good?','c Good?']
