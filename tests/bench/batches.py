"""Ranking with batches that are cut where padding costs more than a call, against batches as full as the budget allows

Texts have the source lengths of real tasks under their templates (lengths.json), cut at 300 tokens, and are random words. Sets of 16, 50 and 400 examples are
ranked, with two choices of one token and with four choices of 5 to 20. Both sides are `rank` with the same budget, weights and ids; the other
one plans as if a call cost nothing less than a whole budget, which is the rule as it was. Scores must be equal. Both the clock and the
processor time of the pairs are given; the ratio that counts is the processor time of 16 examples with short choices, and no case may lose more than a twentieth."""
import json, os, time
from pathlib import Path
from types import SimpleNamespace
from common import HERE, interleave_cpu, parser, ratio_of, repeats, report, setup, small
import numpy as np, torch

GOAL,WORST = 1.2,.95
CHOICES = dict(short=(2,1,1), long=(4,5,20)) # how many, tokens from, tokens to
MODELS = { # widths as small, middling and wide as a CPU is used for
    'tiny': None,
    't5-10m': dict(dim=256, ff=768, layers=(4,4), heads=4, head_dim=64),
    'small-test': dict(dim=32, ff=64, layers=(2,2), heads=2, head_dim=16)
}

def model(name):
    from promptbench.model.backbone import load_backbone, random_backbone
    if MODELS.get(name): return random_backbone([f'w{i}' for i in range(1000)], **MODELS[name])
    return load_backbone(name)

def examples(backbone, n, kind):
    "Random words in texts of real lengths"
    from promptbench.base.core import rng
    r = rng('bench batches', n, kind)
    rows = json.loads((HERE/'lengths.json').read_text())
    words = [backbone.tokenizer.decode([i]).strip() for i in range(300, 800)]
    def text(k): return ' '.join(r.choices(words, k=max(1, k)))
    many,low,high = CHOICES[kind]
    lengths = r.choices([s for s,*_ in rows], [c for *_,c in rows], k=n)
    return [SimpleNamespace(id=str(i), source=text(min(300, k)), gold=0, choices=tuple(f'{words[c]} {text(r.randint(low, high)-1) if high>1 else ""}' for c in range(many)))
            for i,k in enumerate(lengths)]

def fill(shapes):
    "Share of the encoder's positions that are no padding"
    return sum(int(real) for real,_ in shapes)/sum(all_ for _,all_ in shapes)

def measure(backbone, n, kind, times):
    "Both sides on one set"
    import promptbench.measure.rank as page
    es = examples(backbone, n, kind)
    calls,shapes,score = dict(page.CALL),[],page.score_units
    def counted(b, work, units, *given):
        lengths = work.src.lengths[work.unit_src[units]]
        shapes.append((lengths.sum(), len(units)*int(lengths.max())))
        return score(b, work, units, *given)
    def ranked(**other):
        page.CALL.update(other or calls)
        try: return np.concatenate(page.rank(backbone, [es])[0].sum)
        finally: page.CALL.update(calls)
    never = dict.fromkeys(calls, 1<<40)
    page.score_units = counted
    a,cut = ranked(),list(shapes)
    shapes.clear()
    b,full = ranked(**never),list(shapes)
    page.score_units = score
    gap = float(np.abs(a-b).max())
    if gap>1e-5*max(1., float(np.abs(b).max())): raise SystemExit(f'the two ways differ by {gap:.2g}')
    (clock,cpu) = interleave_cpu(ranked, lambda: ranked(**never), times)
    return dict(ratio=ratio_of(*clock)[0], cpu=ratio_of(*cpu)[0], spread_cpu=ratio_of(*cpu)[1], calls=len(cut), calls_full=len(full), fill=fill(cut), fill_full=fill(full), largest_gap=gap)

def main():
    p = parser(__doc__)
    p.add_argument('--models', default=None, help='comma-separated, of '+', '.join(MODELS)+', or what load_backbone takes')
    o = p.parse_args()
    setup(o)
    if not o.threads: torch.set_num_threads(1)
    names = o.models.split(',') if o.models else ['small-test'] if small() else ['tiny','t5-10m']
    found = {}
    for name in names:
        backbone = model(name)
        for n in ((8,16) if small() else (16,50,400)):
            for kind in CHOICES: found[f'{Path(name).name}_{n}_{kind}'] = measure(backbone, n, kind, repeats() if n<400 else max(2, repeats()//2))
    first = found[f'{Path(names[0]).name}_16_short']
    report('batches', first['cpu'], GOAL, spread=first['spread_cpu'], ratio_slowest_case=min(f['cpu'] for f in found.values()), goal_slowest_case=WORST, load=os.getloadavg()[0], **found)

if __name__=='__main__': main()
