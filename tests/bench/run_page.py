"""What a run page costs beyond its own work: starting a kernel, writing a run folder, ending. Goal: at most 3 s.

The page times itself from its first line, imports included; all else that `execute` takes is overhead. Launching papermill alone is timed in turns with it."""
import os, tempfile, time
from pathlib import Path
from common import interleave, middle, options, repeats, report, small
import nbformat
from promptbench.engine.folder import read_json
from promptbench.engine.pages import execute, run_page

def page(folder):
    "A page that imports what real pages import, and does nothing"
    cell = nbformat.v4.new_code_cell; heavy = '' if small() else '\nimport promptbench.train.tune, promptbench.measure.evaluate'
    nb = nbformat.v4.new_notebook(cells=[cell('number = 0  # tells runs apart\nout = ""', metadata=dict(tags=['parameters'])), cell(f'import time; began = time.time(); cpu = time.process_time(){heavy}'), cell('from promptbench.engine.inside import note\nnote(out, own=time.time()-began, cpu=time.process_time()-cpu)')])
    nb.metadata.kernelspec = dict(name='python3', language='python', display_name='python3'); nbformat.write(nb, folder/'page.ipynb'); return folder/'page.ipynb'

def main():
    options(); tmp = Path(tempfile.mkdtemp()); p = page(tmp); count,over,cpu = [0],[],[]
    def ours():
        count[0] += 1; c,t = sum(os.times()[:4]),time.perf_counter(); r = execute(p, dict(number=count[0]), root=tmp/'runs'); c,t = sum(os.times()[:4])-c,time.perf_counter()-t
        assert r.code==0, r.message
        card = read_json(r.folder/'card.json'); over.append(t-card['own']); cpu.append(c-card['cpu']) # processor time does not depend on what else the machine does
    def plain(): run_page(p, {}, out=tmp/'plain.ipynb')
    a,b = interleave(ours, plain); mid,spread = middle(over[-repeats():])
    t = time.perf_counter(); again = execute(p, dict(number=count[0]), root=tmp/'runs'); found = time.perf_counter()-t; assert not again.fresh
    report('run_page', 3/mid, 1., unit='times as quick as 3 s', spread=3/mid-3/(mid+spread), overhead_s=mid, overhead_spread_s=spread, overhead_cpu_s=middle(cpu[-repeats():])[0], run_s=middle(a)[0], papermill_alone_s=middle(b)[0], done_before_s=found)

if __name__=='__main__': main()
