"""Pretraining on two processes of one thread each, against one process of one thread, side by side. Goal: 1.7 times as quick on two free cores.

`ratio_threads` is against one process that has as many threads as the others have processes, which is what one has without any of this. Goal: 1.2.

The tiny backbone and a shallow prompt are trained on the microworld (T+P), as `promptbench table1` does it, started with torchrun as the page on processes says. An update's time is the clock's, from one row to the next, the sum of gradients and the optimiser included; starting and rendering are not. Both sides run in turns, each alone. `seconds`: the median update; `balance`: the lesser process's share of the tokens, where .5 is even; `busy`: processor time of a process, divided by the clock's, which says whether its core was free; `cpu`: seconds of processor time per update, of the slower process. Beside other work the clock flatters whoever has more processes, and `ratio_cpu`, the same ratio in processor time, is the better figure: it counts what is computed twice, and not the waiting."""
import json, os, subprocess, sys, tempfile, time
from pathlib import Path
from common import middle, parser, ratio_of, repeats, report, setup, small

WARM = 1 if small() else 4 # Updates that are not counted

def options():
    p = parser(__doc__)
    p.add_argument('--updates', type=int, default=None, help='timed updates of each start')
    p.add_argument('--processes', type=int, default=2)
    p.add_argument('--child', default=None, help='be one process of a start, and leave what it measured in this folder')
    o = p.parse_args()
    setup(o)
    return o

def child(folder, updates):
    "Seconds of every update, what this process computed, and what it took; without the first few"
    import promptbench.train.fit as page
    from promptbench.data.suite import load_suite
    from promptbench.model.backbone import load_backbone
    from promptbench.model.ranks import barrier, ranks
    from promptbench.prompt.inits import new_prompt
    from promptbench.train.pretrain import preset, pretrain
    mine,share = [],page._share
    def counted(*given):
        out = share(*given)
        mine.append(sum(b.tokens for b in out))
        return out
    page._share = counted
    backbone = load_backbone('tiny')
    config = preset('tiny', method='T+P', prompt='shallow')
    config = preset('tiny', method='T+P', prompt='shallow', examples=config.batch_size*(updates+WARM))
    tasks = load_suite('microworld').tasks('train')[:8 if small() else None]
    prompt = new_prompt('shallow', backbone, length=config.length, seed=0)
    ends,cpu = [],[]
    for row in pretrain(backbone, prompt, tasks, config, cache=False):
        ends.append(time.perf_counter())
        cpu.append(time.process_time())
    barrier()
    seconds = [b-a for a,b in zip(ends, ends[1:])][WARM-1:]
    own,clock = cpu[-1]-cpu[WARM-1],ends[-1]-ends[WARM-1]
    out = dict(seconds=seconds, tokens=sum(mine[WARM:]), busy=own/clock, cpu=own/len(seconds), loss=row['loss'])
    (folder/f'{ranks().rank}.json').write_text(json.dumps(out))

def start(processes, updates, threads=1):
    "What the processes of one start measured"
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), __file__, '--child', folder,
                '--updates', str(updates), '--threads', str(threads), *(['--small'] if small() else [])]
        done = subprocess.run(line, env=os.environ|dict(OMP_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True)
        if done.returncode: raise SystemExit(done.stderr[-3000:])
        return [json.loads((Path(folder)/f'{r}.json').read_text()) for r in range(processes)]

def main():
    o = options()
    updates = o.updates or (3 if small() else 60)
    if o.child: return child(Path(o.child), updates)
    sides = {o.processes: [], 1: [], 'threads': []}
    for i in range(1 if small() else repeats()):
        for n in [o.processes,1,'threads'][::1 if i%2==0 else -1]:
            sides[n].append(start(1, updates, o.processes) if n=='threads' else start(n, updates))
    update = {n: [middle(r[0]['seconds'])[0] for r in runs] for n,runs in sides.items()}
    ratio,spread = ratio_of(update[o.processes], update[1])
    ratio_threads,spread_threads = ratio_of(update[o.processes], update['threads'])
    cpu = {n: [max(p['cpu'] for p in run) for run in runs] for n,runs in sides.items()}
    ratio_cpu,spread_cpu = ratio_of(cpu[o.processes], cpu[1])
    last = sides[o.processes][-1]
    tokens = [r['tokens'] for r in last]
    report('processes', ratio, 1.7, spread=spread, ratio_cpu=ratio_cpu, goal_cpu=1.7, spread_cpu=spread_cpu, ratio_threads=ratio_threads, goal_threads=1.2, spread_threads=spread_threads, seconds_threads=middle(update['threads'])[0], processes=o.processes, seconds=middle(update[o.processes])[0], seconds_alone=middle(update[1])[0],
           cpu=middle(cpu[o.processes])[0], cpu_alone=middle(cpu[1])[0],
           balance=min(tokens)/sum(tokens), busy=[r['busy'] for r in last], busy_alone=sides[1][-1][0]['busy'],
           loss=last[0]['loss'], loss_alone=sides[1][-1][0]['loss'])

if __name__=='__main__': main()
