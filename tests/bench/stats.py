"""ARG and 1,000 paired resamples for 7 methods x 116 templates x 10,042 instances, from the predictions file to intervals of every cell and every difference.
The limit is 10 s and 2 GB on 2 cores, measured in a process of its own (which uses one of them). Beside it the obvious loop over iterations from arrays in memory
(a few iterations, scaled up), which `ratio` compares with our resampling from such arrays, `ratio_with_table` with everything from the table on; and
P3's real shape: 11 datasets of 56 to 10,042 instances, several templates each."""
import itertools, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import common

# dataset, choices, templates, instances (validation split of P3; COPA's four half templates are counted as whole ones)
P3 = [('anli_r1',3,15,1000), ('anli_r2',3,15,1000), ('anli_r3',3,15,1200), ('cb',3,15,56), ('rte',2,10,277), ('wsc',2,10,104), ('winogrande',2,5,1267),
      ('copa',2,12,100), ('hellaswag',4,4,10042), ('story_cloze',2,5,1871), ('wic',2,10,638)]
METHODS = ['none','P-only','T-only','T+P','FOMAML','Reptile','T0']
SECONDS,GIGABYTES = 10,2

def outcomes(shape, methods, seed=0):
    "correct[dataset] as [methods, templates, instances]: some instances are easy for every method and template"
    gen = np.random.default_rng(seed)
    return {d: gen.random((len(methods),t,n), dtype=np.float32) < (np.linspace(.4,.6,len(methods))[:,None,None]+.4*(gen.random(n, dtype=np.float32)-.5)) for d,_,t,n in shape}

def write(path, shape, methods, correct):
    "The predictions as the store writes them: one line per answer, text columns with dictionaries, ids as text; the score lists, which the bootstrap does not read, are left out"
    import pyarrow as pa, pyarrow.parquet as pq
    word = lambda values,index: pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(values)).cast(pa.large_string())
    writer = None
    for d,c,t,n in shape:
        k = len(methods)*t*n; m,tt,i = (x.ravel() for x in np.meshgrid(np.arange(len(methods)), np.arange(t), np.arange(n), indexing='ij')); zero = np.zeros(k, np.int32)
        table = pa.table(dict(run=word(methods, m), suite=word(['p3'], zero), backbone=word(['xl'], zero), method=word(methods, m), prompt=word(['deep'], zero), shots=pa.array(np.full(k, 16)), seed=pa.array(np.zeros(k, np.int64)),
                              cluster=word(['c'], zero), dataset=word([d], zero), template=word([f'{d}_{j}' for j in range(t)], tt), instance=word([f'{d}/validation/{j}' for j in range(n)], i),
                              gold=pa.array(i%c), correct=pa.array(correct[d].ravel())))
        writer = writer or pq.ParquetWriter(path, table.schema, compression='zstd'); writer.write_table(table)
    writer.close()

def rows_of(shape, methods, correct):
    import pandas as pd
    return pd.DataFrame([dict(suite='p3', backbone='xl', method=x, prompt='deep', shots=16, seed=0, dataset=d, template=f'{d}_{j}', value=float(correct[d][m,j].mean()), n=n, chance=1/c)
                         for d,c,t,n in shape for m,x in enumerate(methods) for j in range(t)])

def read(path):
    "A predictions file with its text columns as categories, without the lists of scores"
    import pyarrow.parquet as pq
    need = ['run','suite','backbone','method','prompt','shots','seed','cluster','dataset','template','instance','correct']
    return pq.read_table(path, columns=need, read_dictionary=[c for c in need if c not in ('shots','seed','correct')]).to_pandas(split_blocks=True, self_destruct=True)

def child(folder, n):
    "From the files to every interval; prints seconds of each part and the peak of memory"
    from promptbench.stats.bootstrap import estimate
    from promptbench.stats.resample import replicate
    import pandas as pd
    at = [time.perf_counter()]; p = read(Path(folder)/'predictions.parquet'); rows = pd.read_parquet(Path(folder)/'rows.parquet'); at.append(time.perf_counter())
    r = replicate(p, rows=rows, n=n); at.append(time.perf_counter())
    methods = sorted(rows.method.unique()); cells = {m:estimate(r, (m,'deep',16)) for m in methods}
    pairs = {(a,b):estimate(r, (a,'deep',16), (b,'deep',16)) for a,b in itertools.combinations(methods, 2)}; at.append(time.perf_counter())
    out = dict(read_s=at[1]-at[0], replicate_s=at[2]-at[1], intervals_s=at[3]-at[2], total_s=at[3]-at[0], cpu_s=time.process_time(), peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20,
               answers=len(p), intervals=len(cells)+len(pairs), sd=float(r.draws_Vn.std(1).mean()))
    print(json.dumps(out|dict(bare_s=bare(p, rows, n))))

def bare(p, rows, n):
    "Seconds of the resampling alone, from arrays as the loop has them"
    from promptbench.stats.resample import _block_draws, _blocks, _lines
    lines,line = _lines(p, rows, 'chance', 'macro9', None); todo = []
    for b in _blocks(p, line):
        c = np.zeros((len(b.line_R), lines.view.max()+1)); c[np.arange(len(c)),lines.view.to_numpy()[b.line_R]] = lines.coef.to_numpy()[b.line_R]; todo.append((b, c))
    start = time.perf_counter()
    for k,(b,c) in enumerate(todo): _block_draws(b, c, n, np.random.default_rng(k))
    return time.perf_counter()-start

def measure(folder, n):
    "`child` in a fresh process, so that its peak of memory is its own"
    env = dict(os.environ, OMP_NUM_THREADS='1') # products are small: a second thread waits more than it works
    out = subprocess.run([sys.executable, __file__, '--child', str(folder), str(n)], capture_output=True, text=True, env=env, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])

def loop(shape, correct, n, seed=0):
    "The obvious way: draw instances per dataset, look their answers up template by template, average; the difference of every pair of methods comes from the same draw"
    gen = np.random.default_rng(seed); groups = {'anli_r1':'ANLI','anli_r2':'ANLI','anli_r3':'ANLI'}; out = []
    for _ in range(n):
        gains = {}
        for d,c,t,size in shape:
            at = gen.integers(0, size, size)
            for j in range(t): gains.setdefault(groups.get(d, d), []).append([(correct[d][m,j][at].mean()-1/c)*c for m in range(correct[d].shape[0])])
        out.append(100*np.mean([np.mean(g, axis=0) for g in gains.values()], axis=0))
    return np.array(out)

def study(shape, n, loops, repeats):
    "Medians of our time and the loop's, run in turns, and the rest of the figures"
    correct = outcomes(shape, METHODS); ours,theirs,last = [],[],None
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder)/'predictions.parquet', shape, METHODS, correct); rows_of(shape, METHODS, correct).to_parquet(Path(folder)/'rows.parquet')
        for _ in range(repeats):
            last = measure(folder, n); ours.append(last); start = time.perf_counter(); looped = loop(shape, correct, loops); theirs.append((time.perf_counter()-start)*n/loops)
    mid = lambda k: common.middle([o[k] for o in ours])[0]
    ratio,spread = common.ratio_of([o['bare_s'] for o in ours], theirs); whole = common.ratio_of([o['replicate_s']+o['intervals_s'] for o in ours], theirs)[0]
    return dict(ratio=ratio, spread=spread, ratio_with_table=whole, loop_s=common.middle(theirs)[0], **{k:mid(k) for k in ('total_s','cpu_s','read_s','replicate_s','intervals_s','bare_s','peak_gb')}, answers=last['answers'], intervals=last['intervals'],
                sd=last['sd'], sd_loop=float(looped.std(0, ddof=1).mean()))

def main():
    small = common.small(); n,loops,repeats = (100,5,1) if small else (1000,10,max(3,common.repeats()-2)); cut = lambda s: [(d,c,min(t,2),min(k,40)) for d,c,t,k in s]
    issue = [(d,c,t,10042) for d,c,t,_ in P3]
    full,real = (study(cut(s) if small else s, n, loops, repeats) for s in (issue, P3))
    common.report('stats', full['ratio'], None, unit='times the loop', seconds=full['total_s'], cpu_s=full['cpu_s'], limit_s=SECONDS, peak_gb=full['peak_gb'], limit_gb=GIGABYTES, within=full['total_s']<=SECONDS and full['peak_gb']<=GIGABYTES,
                  resamples=n, loop_iterations_run=loops, blas_threads=1, full=full, p3=real)

if __name__=='__main__':
    if '--child' in sys.argv: child(sys.argv[-2], int(sys.argv[-1]))
    else: main()
