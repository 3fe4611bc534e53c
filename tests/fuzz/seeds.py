"Writes the corpus that fuzzing begins from: one small good input of every kind; finds are added beside them by hand"
import gzip, io, json, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from promptbench.data.tfrecord import example, frame

def table(t, **how):
    out = io.BytesIO()
    pq.write_table(t, out, **how)
    return out.getvalue()

ROWS = [dict(text='Fine, "really".', label=1), dict(text='Bad é', label=0, more=[1,{'a': None}])]
LINES = ''.join(json.dumps(r)+'\n' for r in ROWS).encode()
SEEDS = dict(
    sandbox=dict(plain=b'{{text}} {% for f in facts|sort(attribute="n") %}{{loop.index}} {{f.title|upper}}{% endfor %}', choices=b'{{text.replace("a","b")}} {{ answer_choices[label] }}\x01no ||| yes',
        macro=b'{% macro m(n) %}{% if n %}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(3) }}{% set ns=namespace(x=1) %}{% set ns.x = ns.x*2 %}{{ns.x // 3}}', joined=b'{{ range(3)|map("string")|join("-") }}{{ dict(zip(choices, [1,2])).items()|list }}'),
    templates=dict(plain=b'dataset: a\ntemplates:\n  x: !Template\n    answer_choices: no ||| yes\n    jinja: "{{text}} ||| {{answer_choices[label]}}"\n    name: x\n    metadata: !TemplateMetadata {original_task: true}\n', alias=b'a: &a [1, 2]\ntemplates: {b: !Template {name: n, jinja: "x ||| y", id: *a}}\n'),
    jsonl=dict(plain=LINES), gz=dict(plain=gzip.compress(LINES, mtime=0)), csv=dict(plain=b'text,label,n\n"a, b",1,0.5\nc,0,\n'),
    parquet=dict(plain=table(pa.table(dict(a=['x','x'], b=[[1],[2,3]]))), bare=table(pa.table(dict(a=[1.5])), compression='none', use_dictionary=False, store_schema=False)),
    tfrecord=dict(plain=frame(example(dict(a=['x'], b=[1,2], c=[.5]))), record=example(dict(a=['x'], b=[1]))),
    grid=dict(plain=b'name: a\naxes: {method: [none, a], shots: [0, 4]}\nseeds: 2\nexclude: [{method: none, shots: 4}]\ninclude: [{method: b, rate: 1e-3}]\nset: {a: &a 1}\nsteps: {one: {page: tune, skip: [{method: none}]}, two: {needs: {b: one}}}\n'),
    scores=dict(plain=b'dataset,template,value,seed\nrte,a,0.5,0\nrte,b,0.75,0\n'))

if __name__=='__main__':
    for target,seeds in SEEDS.items():
        place = Path(__file__).resolve().parent/'corpus'/target
        place.mkdir(parents=True, exist_ok=True)
        for name,data in seeds.items(): (place/name).write_bytes(data)
