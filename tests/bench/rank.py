"""Ranking answer choices: every source encoded once, against one full forward per choice

The other way is that of T0's evaluation and of the paper's code: the source is repeated for each choice, a batch is padded to its
longest text as (examples, choices, length), and the model with transformers' own SDPA attention runs over all of it. Both sides
get the same examples, weights, matrix products and precision, tokenise inside the clock, and must decide alike. The other side has what it
needs to be good: examples sorted by length, and of several sizes of batch the one at which it is fastest. `as_they_come` is the same with unsorted
batches of our size, as those programs do it. Ratios are given by the clock and in processor time, which other work on the machine does not change;
the one reported is by the clock at 4 choices."""
import copy, os
from common import both_times, interleave_cpu, middle, parser, ratio_of, repeats, report, small
import numpy as np, torch
from types import SimpleNamespace

GOALS = {2:2., 4:3.}; BUDGETS = (1024,2048,4096,8192) # of the other side
SIZES = dict(t5=dict(dim=256, ff=768, layers=(4,4), heads=4, head_dim=64), llama=dict(dim=256, ff=768, layers=(8,8), heads=4, head_dim=64))

def examples(n, choices, r, words, mean=96):
    "Sources of about `mean` words, choices of about four tokens with the closing one"
    text = lambda k: ' '.join(r.choices(words, k=k)); lengths = [min(2*mean, max(mean//3, round(r.gauss(mean, mean/4)))) for _ in range(n)]
    return [SimpleNamespace(id=str(i), source=text(k-1), choices=tuple(text(r.randint(2,4)) for _ in range(choices)), gold=0) for i,k in enumerate(lengths)]

def pad(rows): T = max(map(len, rows)); return torch.tensor([list(x)+[0]*(T-len(x)) for x in rows]), torch.tensor([[1]*len(x)+[0]*(T-len(x)) for x in rows])

@torch.inference_mode()
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
    "Seconds of ours, and of theirs sorted and as they come, and whether they decide alike"
    from promptbench.base.core import rng
    from promptbench.measure.rank import rank
    es = examples(n, choices, rng('bench rank', choices), [f'w{i}' for i in range(1000)], 96 if n>30 else 24)
    def ours(): return np.stack(rank(backbone, [es], token_budget=budget)[0].sum)
    def theirs(tokens): return per_choice(backbone, model, es, tokens, True)
    def unsorted(): return per_choice(backbone, model, es, budget)
    a,b = ours(),theirs(budget); gap = float(np.abs(a-b).max()); other = a.argmax(1)!=b.argmax(1); alike = not other.any()
    if backbone.precision=='fp32' and not (alike and gap<1e-3): raise SystemExit(f'the two ways differ: by {gap:.2g}, in {int(other.sum())} decisions')
    by_budget = {k: min(both_times(lambda: theirs(k))[1] for _ in range(2)) for k in BUDGETS}; best = min(by_budget, key=by_budget.get)
    (o,t),cpu = interleave_cpu(ours, lambda: theirs(best), times); (o2,u),cpu2 = interleave_cpu(ours, unsorted, max(2, times//2))
    (ratio,spread),(ratio_cpu,spread_cpu) = ratio_of(o, t),ratio_of(*cpu)
    return dict(ratio=ratio, spread=spread, cpu=ratio_cpu, spread_cpu=spread_cpu, as_they_come=ratio_of(o2, u)[0], as_they_come_cpu=ratio_of(*cpu2)[0], ours_s=middle(o+o2)[0], theirs_s=middle(t)[0],
        their_budget=best, their_cpu_s_by_budget=by_budget, examples_per_s=n/middle(o+o2)[0], largest_gap=gap, same_decisions=alike, other_decisions=int(other.sum()))

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
    more = {f'{what}_{name}':v for f,c in ((two,2),(four,4)) for what,name,v in [('ratio',f'{c}_choices',f['ratio']), ('spread',f'{c}_choices',f['spread']), ('goal',f'{c}_choices',GOALS[c]),
        ('ratio',f'{c}_choices_cpu',f['cpu']), ('spread',f'{c}_choices_cpu',f['spread_cpu']), ('goal',f'{c}_choices_cpu',GOALS[c])]}
    for k in ('ratio_4_choices','spread_4_choices','goal_4_choices'): del more[k]   # that is the ratio itself
    report('rank', four['ratio'], GOALS[4], spread=four['spread'], **more, load=os.getloadavg()[0],
        examples=n, token_budget=o.budget, parameters=sum(p.numel() for p in random_backbone([f'w{i}' for i in range(4000)], **SIZES['t5']).model.parameters()), **figures)

if __name__=='__main__': main()
