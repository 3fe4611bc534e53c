"What the benches share: alternating timings, the machine they ran on, one line of JSON at the end, one row in results.csv"
import argparse, csv, datetime, importlib.metadata, io, json, os, platform, re, statistics, sys, time
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent; ROOT = HERE.parent.parent
RESULTS = HERE/'results.csv'
COLUMNS = ['date','bench','ratio','goal','hardware','threads','versions','figures']
KEYS = ('bench','ratio','goal','met','hardware','threads','versions','date','small')   # every last line has these
if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))   # `python tests/bench/NAME.py` finds the package without an install

def parser(doc=''):
    "The options of every bench; a bench adds its own before it calls `options`"
    p = argparse.ArgumentParser(description=doc, allow_abbrev=False)
    p.add_argument('--small', action='store_true', help='a self-test of seconds on tiny shapes; its figures say nothing')
    p.add_argument('--no-record', dest='record', action='store_false', help='do not append a row to results.csv')
    p.add_argument('--repeats', type=int, default=None, help='timed runs of each side (default 5; 2 with --small)')
    p.add_argument('--threads', type=int, default=None, help='threads of torch on CPU')
    p.add_argument('--device', default=None, choices=['cpu','cuda'], help='default: cuda where there is one')
    return p

@cache
def options():
    "The shared options, whatever else stands on the command line"
    o,_ = parser().parse_known_args(); setup(o)
    return o

def setup(o):
    "Make parsed options hold for this process"
    if o.threads:
        import torch
        torch.set_num_threads(o.threads)

def small(): return options().small
def repeats(): return options().repeats or (2 if small() else 5)

def device():
    "`cuda` where there is one, unless the command line says otherwise"
    import torch
    return options().device or ('cuda' if torch.cuda.is_available() else 'cpu')

def _sync():
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized(): torch.cuda.synchronize()

def seconds(f):
    "Wall time of one call, with the work queued on a GPU included"
    return both_times(f)[0]

def both_times(f):
    "Wall time and processor time (of all threads) of one call; the second does not depend on what else the machine does"
    _sync(); t,c = time.perf_counter(),time.process_time(); f(); _sync()
    return time.perf_counter()-t, time.process_time()-c

def interleave(ours, theirs, repeats=None, warmup=1):
    "Seconds of `ours()` and of `theirs()`, run in turns, so that a slow minute of the machine hits both; the order swaps each time"
    return interleave_cpu(ours, theirs, repeats, warmup)[0]

def interleave_cpu(ours, theirs, repeats=None, warmup=1):
    "The same as (seconds of ours, of theirs) by the clock, and again in processor time"
    n = repeats or globals()['repeats']()
    for _ in range(warmup): ours(); theirs()
    a,b = [],[]
    for i in range(n):
        for f,out in [(ours,a),(theirs,b)][::1 if i%2==0 else -1]: out.append(both_times(f))
    return tuple(([x[k] for x in a], [x[k] for x in b]) for k in (0,1))

def middle(xs):
    "Median and spread (half the distance between the quartiles; half the range below four values)"
    xs = sorted(xs)
    if len(xs)<4: return statistics.median(xs), (xs[-1]-xs[0])/2
    q = statistics.quantiles(xs, n=4, method='inclusive')
    return q[1], (q[2]-q[0])/2

def ratio_of(ours, theirs):
    "How many times quicker ours is: the median over the pairs, which ran side by side, and its spread"
    return middle([t/o for o,t in zip(ours,theirs, strict=True)])

def processor(text, field):
    "What a line of /proc/cpuinfo says, or None"
    found = re.search(rf'^{field}\s*:\s*(.+)$', text, re.M)
    return found and found[1].strip()

@cache
def hardware():
    "Processor with its family and model (many are sold under one name), cores and GPU; never the name of the machine"
    try: text = Path('/proc/cpuinfo').read_text()
    except OSError: text = ''
    cpu = processor(text, 'model name') or platform.processor() or platform.machine()
    family,model = processor(text, 'cpu family'),processor(text, 'model')
    if family and model: cpu += f' (family {family}, model {model})'
    cores = len(os.sched_getaffinity(0)) if hasattr(os,'sched_getaffinity') else os.cpu_count()
    torch = sys.modules.get('torch'); gpu = ''
    if torch is not None and torch.cuda.is_available(): gpu = f' + {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}'
    return f'{cpu}, {cores} cores{gpu}'

def without_family(hardware): return re.sub(r' \(family \d+, model \d+\)', '', hardware)

def products():
    "Libraries that multiply matrices in fp32 on this CPU: torch's, oneDNN, and the one that our linear layers have picked"
    torch = sys.modules.get('torch')
    if torch is None: return {}
    said = torch.__config__.show()
    name = re.search(r'BLAS_INFO=(\w+)', said); mkl = re.search(r'Math Kernel Library Version ([\d.]+)', said); onednn = re.search(r'MKL-DNN v([\d.]+)', said)
    out = dict(blas=(name[1] if name else 'unknown')+(f' {mkl[1]}' if mkl and torch.backends.mkl.is_available() else ''))
    if onednn and torch.backends.mkldnn.is_available(): out['onednn'] = onednn[1]
    linear = sys.modules.get('promptbench.model.linear')
    if linear is not None: out['linear'] = 'onednn' if linear.onednn_pays() else out['blas'].split()[0]
    return out

def threads():
    torch = sys.modules.get('torch')
    return torch.get_num_threads() if torch is not None else 1

@cache
def versions():
    "Versions of what the figures depend on"
    out = dict(python=platform.python_version())
    for name in ('promptbench','torch','transformers','peft'):
        try: out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: out[name] = None
    return out

def _row(line):
    out = io.StringIO(); w = csv.writer(out, lineterminator='\n')
    w.writerow([json.dumps(line[c], sort_keys=True) if isinstance(line[c],dict) else line[c] for c in COLUMNS])
    return out.getvalue()

def record(line, path=RESULTS):
    "Append one row in a single write; the head comes with the first row"
    head = '' if path.exists() and path.stat().st_size else ','.join(COLUMNS)+'\n'
    fd = os.open(path, os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644)
    try: os.write(fd, (head+_row(line)).encode())
    finally: os.close(fd)

def _round(x):
    if isinstance(x, float): return float(f'{x:.4g}')
    if isinstance(x, dict): return {k: _round(v) for k,v in x.items()}
    if isinstance(x, (list,tuple)): return [_round(v) for v in x]
    return x.item() if hasattr(x,'item') else x

def report(bench, ratio, goal, **figures):
    """Print the figures for people, then one line of JSON, and append the row; `ratio` and `goal` may be None: not measured, no goal

    Figures named `spread`, or `ratio_X`, `goal_X` and `spread_X` for further claims of the same bench, appear in the table of README.md"""
    met = None if small() or ratio is None or goal is None else bool(ratio>=goal)
    figures = _round(figures)
    for k,v in figures.items():
        if len(str(v))<=160: print(f'{k:>28}  {v}')   # the rest stands in the last line
    word = {True:'goal met', False:'GOAL MISSED', None:'self-test' if small() else 'no verdict'}[met]
    print(f'{bench}: {"not measured" if ratio is None else f"{ratio:.3g}"} {figures.get("unit", "times")} (goal {goal}) on {hardware()}, {threads()} threads: {word}')
    line = dict(bench=bench, ratio=_round(ratio), goal=goal, met=met, hardware=hardware(), threads=threads(), versions=versions()|products(),
                date=datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'), small=small())
    if options().record and not small() and ratio is not None: record(line | dict(figures=figures))
    print(json.dumps(line | figures, sort_keys=False), flush=True)
    return line | figures

# --- the table in README.md ------------------------------------------------------------------------------------------
def _kind(r):
    "Rows of one kind can be compared: the newest stands for all"
    return r['bench'],r['hardware'],r['threads'],json.loads(r['versions']).get('linear','')

def _met(ratio, goal, spread):
    if ratio<goal: return '**no**'
    return 'yes' if ratio-spread>=goal else 'within the spread'

def table(path=RESULTS):
    "The newest row of every bench on every kind of hardware and with every library of products, as Markdown"
    if not path.exists(): return 'Nothing has been recorded yet.'
    with path.open(newline='') as f: rows = {_kind(r): r for r in csv.DictReader(f)}
    known = {(r['bench'],without_family(r['hardware'])): r['date'] for r in rows.values() if without_family(r['hardware'])!=r['hardware']}
    rows = {k: r for k,r in rows.items() if r['date']>=known.get(k[:2], '')}   # a processor of which only the name is known gives way to one that is known
    def cells(r):
        f = json.loads(r['figures']); linear = _kind(r)[3]; end = [f"{r['hardware']}, {r['threads']} threads"+(f', products by {linear}' if linear else ''), r['date'][:10]]
        claims = [(r['bench'], r['ratio'], r['goal'], f.get('spread'))]
        claims += [(f"{r['bench']}: {k[5:].replace('_',' ')}", f.get('ratio_'+k[5:]), f[k], f.get('spread_'+k[5:])) for k in f if k.startswith('goal_')]
        for name,ratio,goal,spread in claims:
            met = '' if ratio in (None,'') or goal in (None,'') else _met(float(ratio), float(goal), spread or 0.)
            yield [name, ('not measured' if ratio in (None,'') else str(ratio))+(f' ± {spread}' if spread is not None else ''), str(goal or ''), met, *end]
    lines = [['bench','ratio','goal','met','hardware','date'], ['---']*6]+[c for k in sorted(rows) for c in cells(rows[k])]
    return '\n'.join('| '+' | '.join(c)+' |' for c in lines)

def write_table(readme=HERE/'README.md', path=RESULTS):
    "Put the table between the two marks of README.md"
    text = readme.read_text(encoding='utf8'); a,b = '<!-- figures -->','<!-- /figures -->'
    readme.write_text(text[:text.index(a)+len(a)]+'\n'+table(path)+'\n'+text[text.index(b):], encoding='utf8')

if __name__=='__main__': write_table(); print(table())
