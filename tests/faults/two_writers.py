"""Two processes append to one store, one of them is SIGKILLed again and again, a third merges parts (and is killed as well), a fourth reads all the while.

Nothing that was acknowledged may be lost, nothing may be seen half, nothing twice, at any moment.
    python tests/faults/two_writers.py                # 1,000 result sets each, 20 kills of a writer
    python tests/faults/two_writers.py --sets 60 --kills 4
"""
import argparse, json, mmap, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path
import pandas as pd
from promptbench.stats import results as R
from promptbench.base.core import UserError
from promptbench.stats.store import append, compact

TASKS,N = 3,4

def result(writer:str, i:int):
    "Result set `i` of a writer: what it must look like follows from its name alone"
    row = dict(suite='toy', backbone='tiny', method=writer, prompt='deep', shots=16, seed=i, cluster='NLI', dataset='rte', run=f'{writer}-{i}')
    rows = [row|dict(template=f't{t}', metric='accuracy', value=(i+t)%(N+1)/N, n=N, chance=.5, majority=.5) for t in range(TASKS)]
    ps = [row|dict(template=f't{t}', instance=f'rte/{k}', gold=0, pred=int(k>=(i+t)%(N+1)), correct=k<(i+t)%(N+1), scores_sum=[-1.*k,-2.], scores_mean=[-.5*k,-1.]) for t in range(TASKS) for k in range(N)]
    return pd.DataFrame(rows),pd.DataFrame(ps)

def acknowledged(place:Path, writer:str)->int:
    try: return len((place/f'{writer}.ack').read_text().splitlines())
    except FileNotFoundError: return 0

def write(place:Path, writer:str, sets:int, allowed=None):
    "Append what is not acknowledged yet; a line in the file is the acknowledgement. It waits where the next kill is overdue, so that it never ends before"
    ack = os.open(place/f'{writer}.ack', os.O_CREAT|os.O_APPEND|os.O_WRONLY)
    for i in range(acknowledged(place, writer), sets):
        while allowed is not None and i>=int.from_bytes(allowed[:8], 'little'): time.sleep(.001)
        append(place/'store', *result(writer, i)); os.write(ack, f'{i}\n'.encode())

def look(place:Path, every:bool=False)->int:
    "One reading: all that was acknowledged before it is there, whole, once. How many result sets it saw"
    known = {w:acknowledged(place, w) for w in ('steady','killed')}
    if not R.is_store(place/'store'): return 0
    seen = R.load(place/'store', ('rows','predictions'))
    if not seen: assert not any(known.values()); return 0
    sets = {k:t.group_by(['method','seed']).aggregate([([],'count_all')]).to_pylist() for k,t in seen.items()}
    for kind,want in (('rows',TASKS),('predictions',TASKS*N)): assert all(s['count_all']==want for s in sets[kind]), f'half a result set in {kind}'
    at = {k:{(s['method'],s['seed']) for s in v} for k,v in sets.items()}
    assert at['rows']==at['predictions'], 'rows without predictions'
    for w,k in known.items(): assert {(w,i) for i in range(k)}<=at['rows'], f'lost: {sorted({(w,i) for i in range(k)}-at["rows"])[:3]}'
    if every:
        df = seen['rows'].to_pandas(); assert (df.value==(df.seed+df.template.str[1:].astype(int))%(N+1)/N).all()
    return len(at['rows'])

def strict():
    "Let readers in this process fail where one part repeats another, instead of counting it once"
    merge = R._merge
    def checked(found, kind, all_runs):
        whole = merge(found, kind, all_runs); assert len(whole)==sum(len(t) for _,t in found), 'a result set was seen twice'
        return whole
    R._merge = checked

CHILDREN = set()

def forked(fn, *args)->int:
    "Process id of a child that runs `fn`; all is imported already, so it starts at once"
    pid = os.fork()
    if pid: CHILDREN.add(pid); return pid
    try: fn(*args); os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc(); os._exit(1)

def again(fn, pause, place, *args):
    while not (place/'stop').exists(): fn(*args); time.sleep(pause)

def keep_looking(place):
    strict(); n = 0
    while not (place/'stop').exists(): look(place); n += 1; time.sleep(.01)
    (place/'readings').write_text(str(n))

def contradict(place:Path, k:int):
    "Say `k` about one and the same result, together with others who say something else"
    rows,_ = result('contested', 0)
    while not (place/'go').exists(): pass
    try: append(place/'race', rows.assign(majority=k/10, run=f'says {k}'))
    except UserError: os._exit(3)

def race(place:Path, k:int=6)->int:
    "How many of `k` writers that contradict each other were told that they are in; must be one"
    pids = [forked(contradict, place, i) for i in range(k)]; (place/'go').touch()
    codes = [ended(p) for p in pids]; assert set(codes)<={0,3}, codes
    assert codes.count(0)==1==len(R.parts(place/'race')), f'{codes.count(0)} writers were told that they are in, {len(R.parts(place/"race"))} are'
    return codes.count(0)

def ended(pid:int)->int: CHILDREN.discard(pid); return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def struck(pid:int, again): os.kill(pid, signal.SIGKILL); ended(pid); return again()

def harass(place:Path, sets:int, kills:int, gen, merging:bool)->dict:
    "Two writers, a reader, a compactor; one writer and the compactor are killed at random moments. How often"
    allowed = mmap.mmap(-1, 8); allow = lambda n: allowed.__setitem__(slice(0, 8), n.to_bytes(8, 'little')) # shared with the children
    merge = lambda: forked(again, compact, .3, place, place/'store'); write_on = lambda: forked(write, place, 'killed', sets, allowed)
    at = sorted(gen.sample(range(1, max(sets-1, kills+1)), kills)); ahead = lambda k: allow(min(at[k]+5, sets-1) if k<kills else sets); ahead(0)
    steady,killed,reader,merger = forked(write, place, 'steady', sets),write_on(),forked(keep_looking, place),None; done = {'writer':0, 'compactor':0}
    while done['writer']<kills:
        for pid in (killed, steady, reader): # looked at, not waited for
            seen = os.waitid(os.P_PID, pid, os.WEXITED|os.WNOHANG|os.WNOWAIT); assert seen is None or (seen.si_code,seen.si_status)==(os.CLD_EXITED,0), f'a child failed: {seen}'
        if merging and merger is None and R.is_store(place/'store'): merger = merge()
        if acknowledged(place, 'killed')>=at[done['writer']]:
            time.sleep(gen.random()*.05); killed = struck(killed, write_on); done['writer'] += 1; ahead(done['writer'])
            if merger: time.sleep(gen.random()*.1); merger = struck(merger, merge); done['compactor'] += 1
        time.sleep(.002)
    assert ended(killed)==0==ended(steady), 'a writer failed'
    (place/'stop').touch(); assert ended(reader)==0, 'a reader saw something wrong'
    if merger: assert ended(merger)==0, 'the compactor failed'
    return done

def main(sets:int, kills:int, seed:int, merging:bool=True)->dict:
    place,t0 = Path(tempfile.mkdtemp(prefix='two_writers_')),time.time(); race(place)
    try: done = harass(place, sets, kills, random.Random(seed), merging)
    finally:
        for pid in [*CHILDREN]: os.kill(pid, signal.SIGKILL) # only after a failure: nobody is left behind
    wrote = time.time()-t0; strict(); parts = len(R.parts(place/'store')); t0 = time.time(); n = look(place, every=True); read = time.time()-t0
    assert n==2*sets, f'{n} result sets instead of {2*sets}'
    compact(place/'store'); t0 = time.time(); assert look(place, every=True)==2*sets; merged = time.time()-t0
    left = sorted(p.name for p in (place/'store').iterdir() if p.name.startswith(('.new','.gone'))); assert not left, left
    out = dict(sets=2*sets, kills=done, readings=int((place/'readings').read_text()), parts=parts, wrote_s=round(wrote,1), read_s=round(read,2), read_merged_s=round(merged,2), lost=0, half=0, twice=0)
    shutil.rmtree(place)
    return out

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--sets', type=int, default=1000); p.add_argument('--kills', type=int, default=20); p.add_argument('--seed', type=int, default=0); p.add_argument('--no-merging', action='store_true')
    a = p.parse_args(); print(json.dumps(main(a.sets, a.kills, a.seed, not a.no_merging)))
