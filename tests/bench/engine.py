"""A one-seed table on two warm workers through the engine of this checkout, against the one before it. Goal: at least 0.97 of its speed.

The engine before is a commit of this repository (`--old`), checked out beside it for as long as the bench runs; the same small table goes through both in turns, each in processes of its own with a cache of its own, and its rows and predictions must be equal to the last bit. Seconds are those of the whole call, imports included; processor time is that of all its processes together, which does not depend on what else the machine does: `ratio_cpu` is the same ratio in it, and the better figure on a busy machine.

Then what the engine itself takes, without any work:
`again_100`: a fresh process that asks for a table of 100 jobs which are all done (goal 5 s), in which loading a model is an error;
`plan_1000`: 1,000 jobs of a table named in a fresh process, with nothing remembered of any digest (goal 10 s; `plan_warm_s`: with it), and `sweep_1000`: 1,000 pages of a sweep;
`board`: share of the time of two cores that the process takes which plans a table, hears of its jobs and tells how they stand (goal 1 %; imports do not count); `board_of_1000`: the same for 1,000 jobs of which none ends, from the share of one core (`look_share`). `look_..._s` is the processor time of a single look at them, `board_cpu_share` the share in the processor time of all processes, which grows with the time that a busy machine takes."""
import ctypes, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from common import ROOT, middle, parser, ratio_of, repeats, report, setup, small

OLD = 'c4fd828' # The last commit whose tables had an engine of their own
TABLE = dict(methods=('none','T-only','P-only','T+P'), prompts=('shallow','deep'), shots=(0,16), scale='quick',
             pretrain=dict(examples=960), tune=dict(steps=15), n_eval=25, precision='fp32')
TOY = dict(methods=('none',), prompts=('shallow',), shots=(0,16), scale='quick', tune=dict(steps=1), n_eval=2, precision='fp32')

def options():
    p = parser(__doc__)
    p.add_argument('--old', default=None, help=f'commit of the engine before (default {OLD}; with --small none is needed)')
    o = p.parse_args()
    setup(o)
    return o

# --- processes -------------------------------------------------------------------------------------------------------
def adopt():
    "Where the system can, processes whose parents have ended become ours, so that their processor time is counted"
    if sys.platform=='linux': ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) # PR_SET_CHILD_SUBREAPER

def everything_below(p):
    "Exit code of a process, and processor time of it and all it has started"
    cpu,code = 0.,None
    while True:
        try: pid,status,used = os.wait4(-1, 0)
        except ChildProcessError: return code,cpu
        cpu += used.ru_utime+used.ru_stime
        if pid==p.pid: code = os.waitstatus_to_exitcode(status)

def start(tree, cache, *args):
    "What one of the children below says, in the code of `tree`, with the seconds and the processor time of all its processes"
    env = os.environ|dict(PYTHONPATH=str(tree), PROMPTBENCH_CACHE=str(cache), PROMPTBENCH_QUIET='1', OMP_NUM_THREADS='1',
                          HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        began = time.perf_counter()
        p = subprocess.Popen([sys.executable, __file__, '--child', *map(str, args)], env=env, stdout=out, stderr=err)
        code,cpu = everything_below(p)
        took = time.perf_counter()-began
        out.seek(0)
        err.seek(0)
        if code: raise SystemExit(f'{args[0]} in {tree} ended with {code}:\n{err.read()[-3000:]}')
        return json.loads(out.read().splitlines()[-1])|dict(seconds=took, cpu=cpu)

# --- what the children do; code of both engines ----------------------------------------------------------------------
def settings(given):
    from promptbench.studies.table1 import Settings
    return Settings(**json.loads(given))

def table(out, given, workers):
    "A table, and the processor time of this process from the end of its imports on"
    import promptbench.studies.table1 as t
    s = settings(given)
    began = time.process_time()
    t.run_all(s, Path(out), workers=int(workers), quiet=True)
    return dict(own=time.process_time()-began)

def no_models():
    "From here on, whoever loads a model has failed"
    import safetensors, safetensors.torch
    import promptbench.model.backbone as page
    def refuse(*a, **k): raise AssertionError('a model was loaded')
    page.load_backbone = safetensors.safe_open = safetensors.torch.load_file = safetensors.torch.load_model = refuse

def again(out, given):
    "A table that is done: planned, keyed, looked at, and nothing to do"
    began = time.perf_counter()
    from promptbench.studies.table1 import jobs, run_all
    s = settings(given)
    if 'refuse' in sys.argv: no_models()
    run_all(s, Path(out), workers=2, quiet=True)
    return dict(inside=time.perf_counter()-began, jobs=len(jobs(s)))

def pretend(out, given):
    "Cards of a table that was never computed: all its jobs are done"
    from promptbench.base.core import to_json, write_atomic
    from promptbench.studies.study import jobs_in
    from promptbench.studies.table1 import jobs
    try: from promptbench.engine.job import sealed
    except ImportError: sealed = None # the engine before cards had seals
    planned = jobs(settings(given))
    for j in planned:
        folder,card = jobs_in(out)/j.key,dict(state='done', key=j.key, stage=j.stage, spent=1.)
        write_atomic(folder/'card.json', to_json(card|(sealed(folder, card) if sealed else {})), durable=False)
    return dict(jobs=len(planned))

def plan(given):
    "Jobs of a table, in a process that knows nothing yet; then once more"
    began = time.perf_counter()
    from promptbench.studies.table1 import jobs
    planned = jobs(settings(given))
    first,cpu = time.perf_counter()-began,time.process_time()
    jobs(settings(given))
    return dict(jobs=len({j.key for j in planned}), known=time.perf_counter()-began-first, planned=cpu)

def sweep(n):
    "Pages of a sweep, in a process that knows nothing yet"
    from promptbench.engine.grid import expand
    began = time.perf_counter()
    page = dict(page='tune', set=dict(suite='microworld', backbone='tiny', precision='fp32'))
    planned = expand(dict(axes=dict(shots=[4,16], prompt=['shallow','deep']), seeds=int(n)//4, steps=dict(tune=page)))
    return dict(jobs=len({j.key for j in planned}), inside=time.perf_counter()-began)

def look(out, given):
    "Seconds of one look at a call of many jobs, one of them done, and the share of a core that the call takes while workers work"
    from promptbench.base.core import to_json, write_atomic
    from promptbench.engine.board import terminal_board
    from promptbench.engine.pools import Workers
    from promptbench.engine.run import run
    from promptbench.studies.study import jobs_in, tell_progress
    from promptbench.studies.table1 import jobs
    class Elsewhere(Workers):
        "Workers that cost this process nothing, and never end"
        def start(self, name, device): return name
        def alive(self, worker): return True
        def end(self, worker): pass
        def close(self): shutil.rmtree(self.queue.place)
    planned = jobs(settings(given))
    write_atomic(jobs_in(out)/planned[-1].key/'card.json', to_json(dict(state='done', spent=9.))) # so that there is a time left
    began = time.perf_counter()
    boards = run(planned, jobs_in(out), Elsewhere(2))
    board = next(boards)
    opened = time.perf_counter()-began
    clock,cpu = time.perf_counter(),time.process_time()
    for n,board in enumerate(boards):
        tell_progress(out, board)
        if n==(2 if small() else 20): break
    share = (time.process_time()-cpu)/(time.perf_counter()-clock)
    def timed(f):
        began = time.process_time()
        for _ in range(5): f()
        return (time.process_time()-began)/5
    return dict(open_s=opened, share=share, left_s=timed(lambda: board.left), progress_s=timed(lambda: tell_progress(out, board)), terminal_s=timed(lambda: terminal_board(board)))

CHILDREN = dict(table=table, again=again, pretend=pretend, plan=plan, sweep=sweep, look=look)

# --- the old engine beside the new one -------------------------------------------------------------------------------
def checked_out(commit, place):
    "The repository as it was; `git worktree remove` takes it away again"
    made = subprocess.run(['git','worktree','add','--detach',str(place),commit], cwd=ROOT, capture_output=True, text=True)
    if made.returncode: raise SystemExit(f'the engine before must be a commit of this repository, got {commit!r}: {made.stderr.strip()}')
    return place

def results(out):
    "Rows and predictions of a table, wherever its engine has put them, without the names of the runs"
    import pandas as pd
    both = []
    for name in ('rows','predictions'):
        files = sorted(Path(out).glob(f'*/*/{name}.parquet'))
        t = pd.concat([pd.read_parquet(f) for f in files]).drop(columns='run')
        both.append(t.sort_values([c for c in t if c in ('method','prompt','shots','seed','task','dataset','template','instance')]).reset_index(drop=True))
    return both

def in_turns(sides, n):
    "The same table by each side, `n` times; every pair must have equal results"
    import pandas as pd
    took = {name: [] for name in sides}
    for i in range(n):
        with tempfile.TemporaryDirectory() as place:
            for name in list(sides)[::1 if i%2==0 else -1]:
                tree,cache = sides[name]
                took[name].append(start(tree, cache, 'table', Path(place)/name, *(json.dumps(TOY), 1) if small() else (json.dumps(TABLE), 2)))
            tables = [results(Path(place)/name) for name in sides]
            for a,b in zip(*tables): pd.testing.assert_frame_equal(a, b, check_exact=True)
    return took, len(tables[0][0]), len(tables[0][1])

def compared(o, tmp):
    "Speed of the new engine beside the old one"
    place = None if small() and not o.old else checked_out(o.old or OLD, tmp/'old')
    try:
        sides = dict(new=(ROOT, tmp/'cache'), old=(place or ROOT, tmp/'cache-old'))
        took,rows,predictions = in_turns(sides, 1 if small() else repeats())
    finally:
        if place: subprocess.run(['git','worktree','remove','--force',str(place)], cwd=ROOT, capture_output=True)
    of = lambda side, what: [t[what] for t in took[side]]
    (ratio,spread),(ratio_cpu,spread_cpu) = (ratio_of(of('new', w), of('old', w)) for w in ('seconds','cpu'))
    board = middle([t['own']/t['seconds']/2 for t in took['new']])[0]
    figures = dict(spread=spread, ratio_cpu=ratio_cpu, goal_cpu=.97, spread_cpu=spread_cpu, pairs=len(took['new']), rows=rows, predictions=predictions, board_share=board,
                   ratio_board=.01/board, goal_board=1.)
    for side in took: figures |= {f'{side}_s':middle(of(side, 'seconds'))[0], f'{side}_cpu_s':middle(of(side, 'cpu'))[0]}
    return ratio,figures|dict(new_parent_cpu_s=middle(of('new', 'own'))[0], board_cpu_share=middle([t['own']/t['cpu'] for t in took['new']])[0])

# --- the engine alone ------------------------------------------------------------------------------------------------
def many(n):
    "A table of about `n` jobs: 25 of each seed"
    return json.dumps(TABLE|dict(methods=('none','T-only','P-only','T+P','FOMAML'), seeds=list(range(max(1, n//25)))))

def alone(tmp):
    "Seconds without any work"
    hundred,thousand,pages = (many(25),many(25),40) if small() else (many(100),many(1000),1000)
    start(ROOT, tmp/'cache', 'pretend', tmp/'done', hundred)
    proof = start(ROOT, tmp/'cache', 'again', tmp/'done', hundred, 'refuse') # no model is loaded
    found = proof if small() else start(ROOT, tmp/'cache', 'again', tmp/'done', hundred)
    cold,*warm = (start(ROOT, tmp/'cold', 'plan', thousand) for _ in range(1 if small() else 2))
    swept,*swept_warm = (start(ROOT, tmp/'cold-pages', 'sweep', pages) for _ in range(1 if small() else 2))
    seen = start(ROOT, tmp/'cache', 'look', tmp/'look', thousand)
    return dict(ratio_again_100=5/found['seconds'], goal_again_100=1., again_jobs=found['jobs'], again_s=found['seconds'], again_cpu_s=found['cpu'],
                ratio_plan_1000=10/(cold['seconds']-cold['known']), goal_plan_1000=1., plan_jobs=cold['jobs'], plan_s=cold['seconds']-cold['known'], plan_cpu_s=cold['planned'], plan_warm_s=[p['seconds'] for p in warm], plan_once_more_s=cold['known'],
                ratio_sweep_1000=10/swept['seconds'], goal_sweep_1000=1., sweep_jobs=swept['jobs'], sweep_s=swept['seconds'], sweep_cpu_s=swept['cpu'], sweep_warm_s=[p['seconds'] for p in swept_warm],
                look_jobs=cold['jobs'], look_share=seen['share'], ratio_board_of_1000=.01/(seen['share']/(2+seen['share'])), goal_board_of_1000=1., **{f'look_{k}':v for k,v in seen.items() if k.endswith('_s')})

def main():
    if '--child' in sys.argv:
        name,*args = [a for a in sys.argv[sys.argv.index('--child')+1:] if a!='refuse']
        print(json.dumps(CHILDREN[name](*args)))
        return
    o = options()
    adopt()
    tmp = Path(tempfile.mkdtemp())
    try:
        figures = alone(tmp)
        ratio,sides = compared(o, tmp)
    finally: shutil.rmtree(tmp, ignore_errors=True)
    report('engine', ratio, .97, unit='times the speed of the engine before', load=os.getloadavg()[0], **sides, **figures)

if __name__=='__main__': main()
