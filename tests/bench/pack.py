"""A multi-task training step on packed rows against padded batches, grouped by length and in random order

Texts have the lengths of real data under its templates (lengths.json: pairs of source and target token counts, nothing of the texts),
but random words. An update of 1,536 examples with a shallow prompt of 20, transformer and prompt both trained, is cut in three ways with
the same token budget; of each, evenly spaced pieces are run forward and backward, and the optimiser's step is added in proportion. Both
padded sides use our own engine (targets' padding never reaches the output layer), grouped by whichever order of lengths fills best.
It is done at each of several budgets. The ratio that counts is that of the first model at the first budget, which is the default of
`PretrainConfig.row_tokens`; `best_vs_best` lets each side have the budget at which it is fastest.

`python tests/bench/pack.py --lengths FOLDER` writes lengths.json anew from a folder of datasets (needs their templates). No subword
tokenizer can be bundled, so tokens are words and punctuation marks times 1.3, about what T5's does to English; the cuts at 768 and 192
and the closing tokens are ours."""
import itertools, json, re, sys
from collections import Counter
from common import HERE, interleave, middle, parser, ratio_of, report, seconds, small
import torch

FILE = HERE/'lengths.json'; GOALS = dict(grouped=1.2, random=1.7)
MODELS = { # words, and options of random_backbone
    '10m': (8000, dict(dim=256, ff=512, layers=(4,4), heads=4, head_dim=64)),
    'small-test': (500, dict(dim=16, layers=(1,1)))
}

# --- lengths ---------------------------------------------------------------------------------------------------------
def count(folder, each=50):
    "Source and target lengths of some training examples of every task, as [source, target, how often]"
    from promptbench.base.core import UserError, rng
    from promptbench.data.suite import load_suite, render
    n = lambda text, most: 1+min(most, round(1.3*len(re.findall(r'\w+|[^\w\s]', text)))); found,left = Counter(),[]
    for t in load_suite(folder, templates='all').tasks('train'):
        order = list(range(t.size('train'))); rng('lengths', t.name).shuffle(order)
        try: found.update((n(e.source,768),n(e.target,192)) for e in itertools.islice(render(t, 'train', order), each))
        except UserError: left.append(t.name)
    print(f'{sum(found.values())} examples; left out, since the sandbox refuses their templates: {left}')
    return [[s,u,c] for (s,u),c in sorted(found.items())]

def write(folder):
    rows = count(folder); lines = [json.dumps(rows[i:i+20], separators=(',',':'))[1:-1] for i in range(0, len(rows), 20)]
    FILE.write_text('[\n'+',\n'.join(lines)+'\n]\n')

def examples(n, vocab):
    "Random ids in texts of real lengths"
    from promptbench.base.core import rng
    r = rng('pack'); rows = json.loads(FILE.read_text()); ids = lambda k: [r.randrange(20, vocab) for _ in range(k-1)]+[1]
    return [(ids(s),ids(u)) for s,u in r.choices([(s,u) for s,u,_ in rows], [c for *_,c in rows], k=n)]

# --- the three sides -------------------------------------------------------------------------------------------------
ORDERS = dict(sum=lambda p: len(p[0])+len(p[1]), weighted=lambda p: len(p[0])+2*len(p[1]), source=lambda p: len(p[0]), blocks=lambda p: (len(p[0])//8,len(p[1])))

def cut_padded(pairs, tokens, P):
    "Runs of examples whose rectangle, prompt included, stays within `tokens`"
    out,run,s,u = [],[],0,0
    for a,b in pairs:
        S,U = max(s,len(a)+P),max(u,len(b))
        if run and (len(run)+1)*(S+U)>tokens: out.append(run); run = []; S,U = len(a)+P,len(b)
        run.append((a,b)); s,u = S,U
    return out+[run]

def positions(runs, P): return sum(len(r)*(max(len(a) for a,_ in r)+P+max(len(b) for _,b in r)) for r in runs)

def sides(pairs, tokens, P):
    "For every side its pieces, each a batch, and the share of positions that are real"
    from promptbench.model.batch import cut_rows, make_batch, pack
    real = sum(len(a)+P+len(b) for a,b in pairs)
    by = {k: cut_padded(sorted(pairs, key=f), tokens, P) for k,f in ORDERS.items()}; best = min(by, key=lambda k: positions(by[k], P))
    runs = dict(random=cut_padded(pairs, tokens, P), grouped=by[best])
    rows = [[pairs[i] for i in r] for r in cut_rows(pairs, tokens, extra=P)]
    return dict(packed=list(map(pack, rows)), **{k:list(map(make_batch, r)) for k,r in runs.items()}), dict(packed=1., **{k:real/positions(r, P) for k,r in runs.items()}), best

def some(parts, n):
    "`n` pieces, evenly spaced from the shortest to the longest"
    return [parts[int((i+.5)*len(parts)/n)] for i in range(min(n, len(parts)))]

# --- the step --------------------------------------------------------------------------------------------------------
def measure(name, pairs, tokens, n, kind='shallow'):
    from promptbench.model.backbone import load_backbone, random_backbone, unfreeze
    from promptbench.train.adafactor import Adafactor
    from promptbench.train.fit import backward, token_nll
    from promptbench.prompt.inits import new_prompt
    if name=='tiny': b = load_backbone('tiny')
    else: words,options = MODELS[name]; b = random_backbone([f'w{i}' for i in range(words-13)], **options)
    unfreeze(b); prompt = new_prompt(kind, b, length=20); opt = Adafactor([*b.model.parameters(), *prompt.parameters()], 1e-3, clip=1.); nll = token_nll(b, prompt)
    parts,fill,best = sides(pairs(b.vocab), tokens, 20 if kind=='shallow' else 0); update = sum(p.tokens for p in parts['packed'])
    chosen = {k: some(p, n) for k,p in parts.items()}; real = {k: sum(x.tokens for x in p) for k,p in chosen.items()}
    def step(k): opt.zero_grad(); backward(chosen[k], nll)
    step('packed'); opt.step(); per_token = middle([seconds(opt.step) for _ in range(3)])[0]/update
    out = {}
    for k in GOALS:
        ours,theirs = ([t/real[side]+per_token for t in ts] for side,ts in zip(('packed',k), interleave(lambda: step('packed'), lambda: step(k))))
        out[k] = dict(ratio=ratio_of(ours, theirs), ours=1/middle(ours)[0], theirs=1/middle(theirs)[0])
    return out,fill,best,b

def main():
    p = parser(__doc__); p.add_argument('--lengths', metavar='FOLDER'); p.add_argument('--tokens', default='8192,4096', help='budgets'); p.add_argument('--pieces', type=int, default=4)
    p.add_argument('--models', default='10m'); p.add_argument('--examples', type=int, default=1536); p.add_argument('--prompt', default='shallow', choices=['shallow','deep']); o = p.parse_args()
    if o.lengths: return write(o.lengths)
    if o.threads is None and not small(): torch.set_num_threads(2)
    if small(): o.models,o.examples,o.tokens,o.pieces = 'small-test',24,'1024',2
    budgets = [int(x) for x in o.tokens.split(',')]; runs = {(name,k): measure(name, lambda vocab: examples(o.examples, vocab), k, o.pieces, o.prompt) for name in o.models.split(',') for k in budgets}
    figures = dict(budgets=budgets, examples=o.examples, prompt=o.prompt)
    for (name,k),(out,fill,best,b) in runs.items():
        at = f'{name}_at_{k}'; figures |= {f'{at}_vs_{g}':x['ratio'][0] for g,x in out.items()}|{f'{at}_{g}_tokens_per_s':x['theirs'] for g,x in out.items()}
        figures |= {f'{at}_packed_tokens_per_s':out['grouped']['ours'], f'{at}_spread':out['grouped']['ratio'][1], f'{at}_grouped_by':best, f'{name}_parameters_M':sum(t.numel() for t in b.model.parameters())/1e6, f'fill_at_{k}':fill}
    first = [runs[o.models.split(',')[0],k][0] for k in budgets]; figures['goal_best_vs_best'] = GOALS['grouped']; figures['ratio_best_vs_best'] = max(x['grouped']['ours'] for x in first)/max(x['grouped']['theirs'] for x in first)
    report('pack_random', first[0]['random']['ratio'][0], GOALS['random'], **figures)
    report('pack', first[0]['grouped']['ratio'][0], GOALS['grouped'], vs_random=first[0]['random']['ratio'][0], **figures)

if __name__=='__main__': main()
