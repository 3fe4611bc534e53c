"""10,000 examples of every task of the microworld, records and rendering included. Goal: at most 2 s of processor time for the slowest.

Beside it: the records alone, and their text from a plain Jinja environment without a sandbox, so that its price is seen too."""
import time
from common import middle, options, repeats, report, small
import jinja2
from promptbench.world.suite import build
from promptbench.data.suite import render

FEW = ('recall','kind_of_word') # they ask only a few dozen different things

def timed(f):
    t = time.process_time(); out = f(); return time.process_time()-t, out

def parts(make, name, role, n):
    "Seconds for the records of a dataset, and for the examples of its first task, each drawn and rendered once"
    t = make().tasks(dataset=name)[0]; split = 'train' if role=='train' else 'validation'
    drawn,records = timed(lambda: list(t.data.records[split])); text,k = timed(lambda: sum(1 for _ in render(t, split))); assert k==len(records)==n, (name, k)
    plain = jinja2.Environment().from_string(t.wording.jinja); return drawn, drawn+text, timed(lambda: [plain.render(**r) for r in records])[0]

def main():
    options(); n = 300 if small() else 10_000; world = lambda: build(seed=1, n_eval=n, n_train=n); many = lambda: build(seed=1, n_train=n, family=9 if small() else 45)
    names = [(world,d) for d in world().datasets if d.name not in FEW]+[(many,d) for d in many().datasets if d.role=='train']
    took = {d.name:[parts(make, d.name, d.role, n) for _ in range(1 if small() else max(1, repeats()//2))] for make,d in (names[::9] if small() else names)}
    mid = {k:[middle(list(x))[0] for x in zip(*v)] for k,v in took.items()}; slow = max(mid, key=lambda k: mid[k][1]); drawn,whole,plain = mid[slow]
    report('world', 2/whole, 1., unit='times as quick as 2 s', slowest=slow, seconds=whole, median_s=middle([v[1] for v in mid.values()])[0], records_s=drawn, plain_jinja_s=plain, examples=n, tasks=len(mid))

if __name__=='__main__': main()
