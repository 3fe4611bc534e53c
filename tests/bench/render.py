"""Rendering and tokenising promptsource templates: ours (compiled templates, word table, two processes, onto disk) against
the way of promptsource and a `map` over a data set (each template parsed anew for every example, one tokenizer call for each text).

What counts is processor time per example, because ours has two processes and theirs one; `ratio_clock_two_processes_beside_one` is what the clock says of
these. `ratio_compiled_once` is against what a careful person would write: every template compiled once, and all texts of a task in one call of the tokenizer.

`--million` measures instead how much memory a data set of a million records takes, from the file of records to the batches of an epoch."""
import itertools, json, os, resource, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path
import common
os.environ['PROMPTBENCH_QUIET'] = '1'; os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

WORKERS = 2
def shared(): return Path(os.environ.get('PROMPTBENCH_SHARED') or common.ROOT.parent/'shared'/'data')

# --- the input -------------------------------------------------------------------------------------------------------
def tasks(per):
    "Up to `per` rows of every training dataset through all of its templates, in memory: the real ones where they are, else the microworld's"
    from promptbench.data.suite import Dataset, Suite, load_suite
    real = shared()/'real'; s = load_suite(real) if (real/'manifest.json').exists() else load_suite('microworld'); out = []
    for d in s.datasets:
        if d.role!='train': continue
        rows = d.records['train']; out.append(Dataset(d.name, d.cluster, d.role, dict(train=[rows[i] for i in range(0, len(rows), max(1, len(rows)//per))][:per]), d.templates))
    return s.name,Suite(s.name, out).tasks('train')

# --- the other way ---------------------------------------------------------------------------------------------------
def environment():
    import jinja2, random
    env = jinja2.Environment(loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined); env.globals['zip'] = zip; env.filters['choice'] = random.Random(0).choice
    env.filters['most_frequent'] = lambda xs: [x for x in dict.fromkeys(xs) if list(xs).count(x)==max(list(xs).count(y) for y in xs)]
    return env

def apply(env, template, record):
    "One example as promptsource makes it: both templates are parsed, compiled and run"
    hide = lambda x: x.replace('|||', '3ed2dface8203c4c9dfb1a5dc58e41e0') if isinstance(x, str) else [hide(v) for v in x] if isinstance(x, list) else {k:hide(v) for k,v in x.items()} if isinstance(x, dict) else x
    values = hide(record)
    if template.answer_choices: values['answer_choices'] = [c.strip() for c in env.from_string(template.answer_choices).render(**values).split('|||')]
    return [p.strip().replace('3ed2dface8203c4c9dfb1a5dc58e41e0', '|||') for p in env.from_string(template.jinja).render(**values).split('|||')]

def theirs(todo, tokenizer):
    "Rendered and tokenised one by one"
    env = environment(); n = 0
    for task,i in todo:
        parts = apply(env, task.wording, task.data.records['train'][i])
        if len(parts)==2 and all(parts): n += 1; [tokenizer(t, truncation=True, max_length=m)['input_ids'] for t,m in zip(parts, (768,192))]
    return n

def theirs_with_care(todo, tokenizer):
    "Each template compiled once; the texts of a task tokenised together"
    env = environment(); parsed = env.from_string; kept = {}; env.from_string = lambda text: kept.get(text) or kept.setdefault(text, parsed(text)); n = 0
    for task,cells in itertools.groupby(todo, lambda c: c[0]):
        rows = [parts for _,i in cells if len(parts := apply(env, task.wording, task.data.records['train'][i]))==2 and all(parts)]; n += len(rows)
        for side,most in zip(zip(*rows), (768,192)): tokenizer(list(side), truncation=True, max_length=most)['input_ids']
    return n

def cpu():
    "Seconds of processor time of this process and of the children that have ended"
    return sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

def main():
    from promptbench.model import tokens
    from promptbench.model.backbone import load_backbone
    from promptbench.train.rendered import rendered
    per = 4 if common.small() else 300; suite,ts = tasks(per); b = load_backbone('tiny'); cells = [(t,i) for t in ts for i in range(t.size('train'))]
    sample = cells[::10] if common.small() else cells[::120]; block = cells[::4]; done = dict(ours=0, theirs=0); spent = dict(ours=[], one=[], plain=[], theirs=[], care=[])
    def ours(workers=WORKERS, kind='ours'):
        folder = tempfile.mkdtemp(); tokens._tables.clear(); c = cpu()
        try: done['ours'] = len(rendered(ts, b, folder=folder, workers=workers))
        finally: shutil.rmtree(folder)
        spent[kind].append((cpu()-c)/done['ours'])
    def other(): c = cpu(); done['theirs'] = theirs(sample, b.tokenizer); spent['theirs'].append((cpu()-c)/done['theirs'])
    def care(): c = cpu(); n = theirs_with_care(block, b.tokenizer); spent['care'].append((cpu()-c)/n)
    a,t = common.interleave(ours, other); per_ours,per_theirs = [x/done['ours'] for x in a],[x/done['theirs'] for x in t]
    clock,clock_spread = common.ratio_of(per_ours, per_theirs); pairs = len(spent['theirs']); ratio,spread = common.ratio_of(spent['ours'][1:pairs], spent['theirs'][1:])
    for _ in range(3): ours(); care()
    careful,careful_spread = common.ratio_of(spent['ours'][-3:], spent['care']); mid = lambda xs: common.middle(xs)[0]
    one = common.seconds(lambda: ours(0, 'one'))/done['ours']
    os.environ['PROMPTBENCH_WORDS'] = '0'; plain = common.seconds(lambda: ours(WORKERS, 'plain'))/done['ours']; del os.environ['PROMPTBENCH_WORDS']
    rate = 1/mid(per_ours); n = len(spent['ours'])//2
    common.report('render', ratio, 10, spread=spread, ratio_compiled_once=careful, goal_compiled_once=2, spread_compiled_once=careful_spread, ratio_clock_two_processes_beside_one=clock, spread_clock=clock_spread, suite=suite, templates=len(ts), examples=done['ours'], examples_theirs=done['theirs'], workers=WORKERS, load=os.getloadavg()[0],
        ratio_thousand_examples_per_second=rate/1000, goal_thousand_examples_per_second=5, examples_per_s_one_process=1/one, examples_per_s_without_word_table=1/plain, examples_per_s_theirs=1/mid(per_theirs),
        cpu_ms_ours=1000*mid(spent['ours'][1:]), cpu_ms_without_word_table=1000*spent['plain'][0], cpu_ms_theirs=1000*mid(spent['theirs'][1:]), cpu_ms_compiled_once=1000*mid(spent['care']),
        examples_per_s_on_two_free_cores=2/mid(spent['ours'][1:]))

# --- a million -------------------------------------------------------------------------------------------------------
class ArrowRows:
    "Records of a memory-mapped Arrow file, one block at a time"
    def __init__(self, path):
        import pyarrow as pa
        self.file = pa.ipc.open_file(pa.memory_map(str(path))); self.block = self.file.get_batch(0).num_rows; self.n = (self.file.num_record_batches-1)*self.block+self.file.get_batch(self.file.num_record_batches-1).num_rows
        self.fingerprint = f'{Path(path).stat().st_size}'; self.at = None,[]
    def __len__(self): return self.n
    def __getitem__(self, i):
        k = i//self.block
        if self.at[0]!=k: self.at = k,self.file.get_batch(k).to_pylist()
        return self.at[1][i-k*self.block]

def write_records(path, n, block=2000):
    "`n` records with a premise of 30 words, a hypothesis of 12 and a label; a few words are common and most are rare, as in real texts"
    import numpy as np, pyarrow as pa
    r = np.random.default_rng(0); words = np.array([''.join(r.choice(list('abcdefghilmnoprstu'), r.integers(2,9))) for _ in range(20_000)]); schema = pa.schema([('premise',pa.string()),('hypothesis',pa.string()),('label',pa.int64())])
    with pa.OSFile(str(path),'wb') as f, pa.ipc.new_file(f, schema) as w:
        for a in range(0, n, block):
            m = min(block, n-a); text = lambda k: [' '.join(x) for x in words[np.minimum(r.zipf(1.25, (m,k)), 20_000)-1]]
            w.write_batch(pa.record_batch([pa.array(text(30)), pa.array(text(12)), pa.array(r.integers(0,2,m))], schema=schema))

def million_child(folder, n):
    "What a run does with its data: render, tokenise, mix, batches from the whole of an epoch"
    from promptbench.model.backbone import load_backbone
    from promptbench.model.batch import make_batch
    from promptbench.train.mixing import mix
    from promptbench.train.rendered import MixedPairs, rendered
    from promptbench.data.suite import Dataset, Suite
    from promptbench.data.templates import Template
    write_records(Path(folder)/'records.arrow', n); b = load_backbone('tiny')
    t = Template('nli', '{{premise}} Question: {{hypothesis}} True or False? ||| {{ answer_choices[label] }}', 'False ||| True')
    ts = Suite('synthetic', [Dataset('million', 'nli', 'train', dict(train=lambda: ArrowRows(Path(folder)/'records.arrow')), [t])]).tasks()
    c = cpu(); s = common.seconds(lambda: rendered(ts, b, folder=folder, workers=WORKERS)); c = cpu()-c; store = rendered(ts, b, folder=folder); pairs = MixedPairs(store, mix(store.sizes, seed=0)); print('rendered', flush=True)
    order = pairs.order(batch_size=4096, seed=0); seen = 0; began = time.perf_counter(); assert len(store)==n
    for k in range(0, len(order), 4): seen += len(make_batch(pairs.take(order[k]), multiple=4)) # every fourth batch: they lie all over the file
    print(json.dumps(dict(render_s=s, render_cpu_s=c, batches_s=time.perf_counter()-began, batch_examples=seen, examples=n, bytes=sum(p.stat().st_size for p in (Path(folder)/'rendered').rglob('*.arrow')))), flush=True)

def million(n):
    "Run the child and watch its whole family: memory in use, shared pages counted once (PSS)"
    import psutil
    folder = tempfile.mkdtemp(); peak = dict(pss=0, rss=0, when=''); phase = ['rendering']
    try:
        child = subprocess.Popen([sys.executable, __file__, '--child', folder, str(n)], stdout=subprocess.PIPE, text=True); lines = []
        def listen():
            for line in child.stdout: lines.append(line); phase[0] = 'batches' if line.startswith('rendered') else phase[0]
        ear = threading.Thread(target=listen); ear.start(); me = psutil.Process(child.pid); peaks = dict(rendering=0, batches=0)
        while child.poll() is None:
            try: family = [me,*me.children(recursive=True)]; pss = sum(p.memory_full_info().pss for p in family); peaks[phase[0]] = max(peaks[phase[0]], pss); peak['rss'] = max(peak['rss'], max(p.memory_info().rss for p in family))
            except (psutil.Error, ProcessLookupError): pass
            time.sleep(.1 if common.small() else .3)
        ear.join()
        if child.returncode: raise SystemExit(f'the child failed with {child.returncode}')
        got = json.loads(lines[-1])
    finally: shutil.rmtree(folder, ignore_errors=True)
    gb = {k:v/2**30 for k,v in peaks.items()}; most = max(gb.values())
    common.report('render: memory of a million', 1.5/most, 1, peak_gb=most, peak_gb_rendering=gb['rendering'], peak_gb_batches=gb['batches'], peak_gb_largest_process=peak['rss']/2**30, workers=WORKERS, **got,
        examples_per_s=got['examples']/got['render_s'], examples_per_s_on_two_free_cores=2*got['examples']/got['render_cpu_s'], batch_examples_per_s=got['batch_examples']/got['batches_s'])

if __name__=='__main__':
    p = common.parser(__doc__); p.add_argument('--million', action='store_true', help='memory on a million synthetic records'); p.add_argument('--rows', type=int, default=None, help='with --million: so many instead'); p.add_argument('--child', nargs=2, help='what --million starts'); o = p.parse_args(); common.setup(o)
    if o.child: million_child(o.child[0], int(o.child[1]))
    elif o.million: million(o.rows or (3000 if common.small() else 1_000_000))
    else: main()
