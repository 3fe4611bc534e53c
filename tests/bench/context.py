"""Examples in context: the front read once for all questions, against the front put before each question

The other way concatenates the examples and the question, so that each question's whole text is read; choices then share it, as our
ranking does for every source. The usual way (`per_choice`) reads it for every choice besides. Same ids on all sides, same scores.
The ratio reported is the one at 16 shots with SmolLM2 where it was fetched, otherwise with a random Llama of its kind but smaller;
`questions` short questions of about 30 tokens, 4 choices of one to three tokens, examples of about 34."""
from common import interleave, middle, parser, ratio_of, repeats, report, small
import numpy as np, torch
from types import SimpleNamespace

GOAL = 3.
WORDS = 'the a film story plot actor scene it was good bad long short dull bright never always said that which people like time day work place kind point'.split()

def questions(n, r):
    "Questions with choices and their answers"
    text = lambda k: ' '.join(r.choices(WORDS, k=k)); choices = ('good','bad','never said','like the time')
    return [SimpleNamespace(id=str(i), source=f'Text: {text(r.randint(14,26))}\nWhat follows ?', choices=choices, gold=i%4, target=choices[i%4]) for i in range(n)]

def measure(backbone, k, n, budget, times):
    "Seconds of the shared front, of the front before each question, and whether they decide alike"
    from promptbench.base.core import rng
    from promptbench.measure.rank import rank
    from promptbench.prompt.context import ContextPrompt, Front, front_ids, front_text
    r = rng('bench context', k); front = front_text(questions(k, r)); es = questions(n, r); ids = tuple(front_ids(backbone, front))
    whole = [SimpleNamespace(**{**vars(e), 'source': front+e.source}) for e in es]
    def ours(): return np.stack(rank(backbone, [es], ContextPrompt([Front(front, ids)], backbone), token_budget=budget)[0].sum)   # a new prompt: the front is read inside the clock
    def theirs(): return np.stack(rank(backbone, [whole], token_budget=budget, max_source=10**4)[0].sum)
    a,b = ours(),theirs(); gap = float(np.abs(a-b).max()); other = int((a.argmax(1)!=b.argmax(1)).sum())
    if backbone.precision=='fp32' and (other or gap>1e-2): raise SystemExit(f'the two ways differ: by {gap:.2g}, in {other} decisions')
    o,t = interleave(ours, theirs, times, warmup=0)
    return dict(ratio=ratio_of(o, t)[0], spread=ratio_of(o, t)[1], ours_s=middle(o)[0], theirs_s=middle(t)[0], front=len(ids), questions=n, largest_gap=gap, other_decisions=other)

def backbones():
    "SmolLM2 where it is, and a random Llama"
    from promptbench.base.core import UserError
    from promptbench.model.backbone import load_backbone, random_backbone
    size = dict(dim=32, ff=64, layers=(2,2), heads=2, head_dim=16) if small() else dict(dim=256, ff=768, layers=(8,8), heads=4, head_dim=64)
    out = dict(llama=random_backbone(['Text:','What','follows','?',*WORDS]+[f'w{i}' for i in range(1000)], kind='llama', **size))
    if small(): return out
    try: return dict(smollm2=load_backbone('smollm2'), **out)
    except UserError as e: print(f'without SmolLM2: {e}'); return out

def main():
    p = parser(__doc__.split('\n')[0]); p.add_argument('--questions', type=int, default=None); p.add_argument('--budget', type=int, default=4096)
    p.add_argument('--shots', type=int, nargs='*', default=None); o = p.parse_args(); torch.set_num_threads(o.threads or 1)
    shots = o.shots or ([2,4] if small() else [4,8,16]); n = o.questions or (8 if small() else 24)
    figures = {f'{name}_{k}_shots': measure(b, k, n, o.budget, repeats()) for name,b in backbones().items() for k in shots}
    first = next(iter(figures)).split('_')[0]; top = figures[f'{first}_{max(shots)}_shots']
    report('context', top['ratio'], GOAL, spread=top['spread'], backbone=first, token_budget=o.budget, **{f'ratio_{k}': f['ratio'] for k,f in figures.items()}, **figures)

if __name__=='__main__': main()
