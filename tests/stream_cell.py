"""Memory of a pretraining run's data on P3's own record files: written, rendered and read batch by batch

`python tests/stream_cell.py FOLDER N` writes N synthetic records as TFRecord, renders them and makes every batch of an epoch; prints what it
held at most beyond what it began with, in MB of its own memory (RssAnon: mapped files, which the system may drop, do not count), by phase."""
import gc, json, sys, threading, time
from pathlib import Path

def held():
    "Own memory of this process, in MB"
    with open('/proc/self/status') as f: return next(int(line.split()[1]) for line in f if line.startswith('RssAnon'))/1024

class Peak:
    "The most that is held while a block runs, beyond what was held at first"
    def __enter__(self):
        gc.collect(); self.began = self.most = held(); self.on = True
        self.watch = threading.Thread(target=self._watch, daemon=True); self.watch.start(); return self
    def _watch(self):
        while self.on: self.most = max(self.most, held()); time.sleep(.005)
    def __exit__(self, *_): self.on = False; self.watch.join(); self.mb = max(self.most, held())-self.began

def write(path, n):
    "P3's records: ids and texts of source and target"
    from promptbench.data.tfrecord import example, frame
    rows = [frame(example({'inputs':list(range(20, 60+i%40)), 'targets':[21+i, 1], 'inputs_pretokenized':[f'Tell me about the cat number {i} and its many friends of old '*3], 'targets_pretokenized':['the cat sat']})) for i in range(50)]
    with open(path, 'wb') as f:
        for k in range(0, n, 50): f.write(b''.join(rows[:min(50, n-k)]))

def tasks_of(paths):
    from promptbench.data.p3 import Ready, _Rows
    from promptbench.data.suite import Dataset, Suite
    from promptbench.data.tables import SINGLE
    from promptbench.data.tfrecord import TFRecords
    def records(path): return lambda: _Rows(TFRecords([path], single=SINGLE), path.stem)
    made = [dict(train=records(p)) for p in paths]
    return Suite('stream', [Dataset(p.stem, 'c', 'train', s, [Ready(p.stem, 'c', 'train', s)]) for p,s in zip(paths, made)]).tasks('train')

def epoch(tasks, folder):
    "Every batch of a run, as pretraining makes them"
    from promptbench.model.backbone import random_backbone
    import promptbench.train.pretrain as page, promptbench.train.rendered as store
    store.PART = 500                                     # a file of a task, as small as the tasks here
    store._crew = lambda workers, rows: 0                # all in this process, where it is seen
    from promptbench.train.pretrain import PretrainConfig, _updates, mixed_pairs
    page.LISTED = 0                                      # the way that mixtures of more than 200,000 examples go
    b = random_backbone('tell me about the cat number and its many friends of old sat'.split()); config = PretrainConfig(method='T-only', prompt='none', batch_size=256, mixture='proportional', packed=False)
    pairs = mixed_pairs(b, tasks, config, cache=folder)
    return sum(len(x) if hasattr(x, 'src_BT') else sum(map(len, x)) for x in _updates(b, None, pairs, config, None))

def main(folder, n):
    folder = Path(folder); paths = [folder/f'part{i}.tfrecord' for i in range(2)]
    for p in paths: write(p, n//2)
    (folder/'warm').mkdir(); warm = [folder/'warm'/p.name for p in paths]
    for p in warm: write(p, 50)
    epoch(tasks_of(warm), folder/'warm')                 # libraries, tokenizer and pools are there before it counts
    tasks = tasks_of(paths)
    with Peak() as opened: [len(t.data.records['train']) for t in tasks]; [t.data.records['train'].fingerprint for t in tasks]
    with Peak() as run: n_seen = epoch(tasks, folder)
    print(json.dumps(dict(n=n, seen=n_seen, file_mb=sum(p.stat().st_size for p in paths)/2**20, opening_mb=opened.mb, rendering_and_batches_mb=run.mb)))

if __name__=='__main__': main(sys.argv[1], int(sys.argv[2]))
