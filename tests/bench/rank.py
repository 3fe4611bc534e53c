"""Ranking answer choices: every source encoded once, against one full forward per choice

The other way is that of T0's evaluation and of the paper's code: the source is repeated for each choice, a batch is padded to its
longest text as (examples, choices, length), and the model with transformers' own SDPA attention runs over all of it. Both sides
get the same examples, weights, matrix products, precision and positions per batch, tokenise inside the clock, and must decide alike.
`theirs` takes the examples as they come, as those programs do; `theirs sorted` is the same with examples grouped by length.
The ratio reported is the one at 4 choices; the figures have 2 choices, other precisions and the sorted rival."""
import copy, sys
from common import interleave, middle, parser, ratio_of, repeats, report, small
import numpy as np, torch
from types import SimpleNamespace

GOALS = {2:2., 4:3.}
SIZES = dict(t5=dict(dim=256, ff=768, layers=(4,4), heads=4, head_dim=64), llama=dict(dim=256, ff=768, layers=(8,8), heads=4, head_dim=64))

def examples(n, choices, r, words, mean=96):
    "Sources of about `mean` words, choices of about four tokens with the closing one"
    text = lambda k: ' '.join(r.choices(words, k=k)); lengths = [min(2*mean, max(mean//3, round(r.gauss(mean, mean/4)))) for _ in range(n)]
    return [SimpleNamespace(id=str(i), source=text(k-1), choices=tuple(text(r.randint(2,4)) for _ in range(choices)), gold=0) for i,k in enumerate(lengths)]

def pad(rows): T = max(map(len, rows)); return torch.tensor([list(x)+[0]*(T-len(x)) for x in rows]), torch.tensor([[1]*len(x)+[0]*(T-len(x)) for x in rows])

@torch.no_grad()
def per_choice(backbone, model, es, budget, by_length=False):
    "Log-probability of every choice, [n,C]: one full forward per choice, padded batches"
    src,flat = backbone.sources([e.source for e in es]),iter(backbone.targets([c for e in es for c in e.choices])); tgt = [[next(flat) for _ in e.choices] for e in es]
    C = len(tgt[0]); order = sorted(range(len(es)), key=lambda i: len(src[i])) if by_length else range(len(es)); out = torch.zeros(len(es), C)
    batches,rows,T,U = [],[],0,0
    for i in order:
        t,u = max(T, len(src[i])),max(U, max(map(len, tgt[i])))
        if rows and (len(rows)+1)*C*(t+u)>budget: batches.append(rows); rows,t,u = [],len(src[i]),max(map(len, tgt[i]))
        rows.append(i); T,U = t,u
    for rows in batches+[rows]:
        ids,mask = pad([src[i] for i in rows]); labels,real = pad([c for i in rows for c in tgt[i]])
        ids,mask = ids.repeat_interleave(C, 0),mask.repeat_interleave(C, 0)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=backbone.precision=='bf16'):
            if backbone.causal: # right-padded: source, answer, padding
                whole,seen = pad([src[i]+c for i in rows for c in tgt[i]]); at = mask.sum(1)[:,None]+torch.arange(labels.shape[1])-1
                logits = model(input_ids=whole, attention_mask=seen, use_cache=False).logits; logits = logits.gather(1, at.clamp(max=whole.shape[1]-1)[:,:,None].expand(-1,-1,logits.shape[2]))
            else: logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=model._shift_right(labels), use_cache=False).logits
        logp = logits.float().log_softmax(-1).gather(2, labels[:,:,None])[:,:,0]*real
        out[torch.tensor(rows)] = logp.sum(1).view(-1, C)
    return out.numpy()

def plain(backbone):
    "The same model with the attention of transformers"
    m = copy.deepcopy(backbone.model); m.set_attn_implementation('sdpa')
    return m

def measure(backbone, model, choices, n, budget, times):
    "Seconds of ours, theirs and theirs sorted, and whether they decide alike"
    from promptbench.base.core import rng
    from promptbench.measure.rank import rank
    es = examples(n, choices, rng('bench rank', choices), [f'w{i}' for i in range(1000)], 96 if n>30 else 24)
    ours = lambda: np.stack(rank(backbone, [es], token_budget=budget)[0].sum); theirs = lambda: per_choice(backbone, model, es, budget); ordered = lambda: per_choice(backbone, model, es, budget, True)
    a,b = ours(),theirs(); gap = float(np.abs(a-b).max()); top = np.sort(b, 1); close = top[:,-1]-top[:,-2]; other = a.argmax(1)!=b.argmax(1); alike = not other.any()
    if backbone.precision=='fp32' and not (alike and gap<1e-3): raise SystemExit(f'the two ways differ: by {gap:.2g}, in {int(other.sum())} decisions')
    o,t = interleave(ours, theirs, times); o2,s = interleave(ours, ordered, times)
    return dict(ratio=ratio_of(o, t)[0], spread=ratio_of(o, t)[1], ratio_sorted=ratio_of(o2, s)[0], ours_s=middle(o+o2)[0], theirs_s=middle(t)[0], theirs_sorted_s=middle(s)[0],
        examples_per_s=n/middle(o+o2)[0], largest_gap=gap, same_decisions=alike, other_decisions=int(other.sum()))

def main():
    p = parser(__doc__.split('\n')[0]); p.add_argument('--examples', type=int, default=None); p.add_argument('--budget', type=int, default=4096); p.add_argument('--more', action='store_true', help='also bfloat16 and a decoder-only model')
    o = p.parse_args(); torch.set_num_threads(o.threads or 2); n = o.examples or (24 if small() else 64)
    from promptbench.model.backbone import random_backbone
    figures = {}
    for kind,precision in [('t5','fp32')]+[('t5','bf16'),('llama','fp32')]*bool(o.more):
        size = dict(dim=32, ff=64, layers=(2,2), heads=2, head_dim=16) if small() else SIZES[kind]
        backbone = random_backbone([f'w{i}' for i in range(100 if small() else 4000)]+[f'w{i}' for i in range(1000)], kind=kind, **size); backbone.precision = precision; model = plain(backbone)
        for c in (2,4): figures[f'{kind}_{precision}_{c}_choices'] = measure(backbone, model, c, n, o.budget, repeats())
    two,four = figures['t5_fp32_2_choices'],figures['t5_fp32_4_choices']
    report('rank', four['ratio'], GOALS[4], spread=four['spread'], ratio_2_choices=two['ratio'], goal_2_choices=GOALS[2], met_2_choices=two['ratio']>=GOALS[2], ratio_4_choices_sorted=four['ratio_sorted'], ratio_2_choices_sorted=two['ratio_sorted'],
        examples=n, token_budget=o.budget, parameters=sum(p.numel() for p in random_backbone([f'w{i}' for i in range(4000)], **SIZES['t5']).model.parameters()), **figures)

if __name__=='__main__': main()
