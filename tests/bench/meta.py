"""One outer step of FOMAML over 16 tasks, 7 inner steps, batches of 16, on a random T5 of 10 million parameters: our bank against a clone per task

What counts is the loop one would write today after the paper's code: transformers' own T5 (its attention, its activation, torch's
linear layers) and its Adafactor; for every task a deep copy of model and prompt, in which only the prompt takes gradients during
the inner loop, then the query gradient of everything, added to the sum, and the copy is dropped. It is the fair one because it
wastes nothing that a careful person would not waste: no gradient of the frozen weights, one copy at a time, batches of one task
and of one length. Two more for comparison. `same forward`: the same loop on our forward pass, so that only bank against clones is
compared. `learn2learn`: the loop of that library's documentation on our forward pass: the inner step differentiates all that
takes gradients, and the query losses of all tasks go backward together, so every clone lives to the end.

Memory: peak resident size of one step, each in a process of its own, above that of a multi-task step on as many examples as the
query batches hold; the loop is `same forward`, so that clones and not kernels are compared, and ours
and the multi-task step work in pieces as large as the loop's batches, so that it is not activations that are compared. Small allocations go back to the
system at once (MALLOC_* below), otherwise the figures would be the allocator's."""
import copy, itertools, os, subprocess, sys, time
from functools import partial
from common import device, interleave, middle, options, parser, ratio_of, report, small
import torch

TASKS,STEPS,BATCH,LENGTH = (16,7,16,20) if '--small' not in sys.argv else (3,2,4,4)
LR = 1e-3
PIECE = 26*BATCH if '--side' in sys.argv else None # For memory, as many tokens as one of the loop's batches has on average; for time, the default
MALLOC = dict(MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='131072', MALLOC_TRIM_THRESHOLD_='131072')

def setting(kind='shallow', dev='cpu'):
    "Model, prompt, settings, the draws of one meta-batch, and their ids with the query batch last"
    from promptbench.model.backbone import load_backbone, new_backbone
    from promptbench.base.core import rng
    from promptbench.prompt.inits import new_prompt
    from promptbench.train.draws import task_batches
    from promptbench.train.meta import MetaConfig
    from promptbench.data.suite import load_suite
    shape = dict(dim=32, layers=(1,1), heads=2) if '--small' in sys.argv else dict(dim=256, layers=(4,4), heads=4, ff=1024)
    b = new_backbone(load_backbone('tiny').tokenizer, **shape).to(dev); p = new_prompt(kind, b, length=LENGTH)
    c = MetaConfig(prompt=kind, length=LENGTH, tasks=TASKS, steps=STEPS, batch_size=BATCH, inner_lr=LR, dropout=0.)
    draws = list(itertools.islice(task_batches(load_suite('microworld').tasks('train'), c.draw, seed=0), TASKS)); pairs = [b.pairs(e) for _,e in draws]
    for i,x in enumerate(pairs): rng('support', c.seed, 0, i).shuffle(x)
    return b,p,c,draws,pairs

# --- the sides -------------------------------------------------------------------------------------------------------
def outer(b, p): from promptbench.train.adafactor import Adafactor; return Adafactor([*b.model.parameters(), *p.parameters()], LR, clip=1.)
def update(opt, grads):
    for x,g in zip(opt.params, grads): x.grad = g
    opt.step(); opt.zero_grad()

def ours(b, p, c, draws, opt):
    from promptbench.train.fit import token_nll
    from promptbench.train.meta import _waves, direction
    (T,P),row,_ = direction(partial(token_nll, b), b.model.parameters(), p, _waves(b, draws, c, 0, PIECE)[0], c); update(opt, T+P)
    return row['loss']

def our_loss(b, p, pairs):
    from promptbench.model.batch import make_batch
    from promptbench.train.fit import token_nll
    batch = make_batch(pairs).to(b.device); return token_nll(b, p)(batch).sum()/batch.tgt_mask_BU.sum()

def plain_loss(model, table, pairs):
    "A shallow prompt before transformers' own T5"
    from promptbench.model.batch import make_batch
    batch = make_batch(pairs).to(table.device); x = torch.cat([table.expand(len(batch),-1,-1), model.get_input_embeddings()(batch.src_BT)], 1)
    mask = torch.cat([torch.ones(x.shape[0], table.shape[1], dtype=torch.long, device=table.device), batch.src_mask_BT], 1)
    return model(inputs_embeds=x, attention_mask=mask, labels=batch.tgt_BU.masked_fill(batch.tgt_mask_BU==0, -100), use_cache=False).loss

def inner(params):
    from transformers.optimization import Adafactor
    return Adafactor(params, lr=LR, scale_parameter=False, relative_step=False, warmup_init=False)

def clones(model, prompt, pairs, opt, loss, weights):
    "Clone, adapt, add up, drop: one task after another"
    G = None; total = 0.
    for x in pairs:
        m,q = copy.deepcopy(model),copy.deepcopy(prompt); phi = [*weights(m), q] if torch.is_tensor(q) else [*weights(m), *q.parameters()]
        for y in phi[:-1]: y.requires_grad_(False)
        o = inner(phi[-1:])
        for k in range(STEPS): o.zero_grad(); loss(m, q, x[k*BATCH:(k+1)*BATCH]).backward(); o.step()
        for y in phi: y.requires_grad_(True); y.grad = None
        l = loss(m, q, x[-BATCH:]); l.backward(); total += l.item(); g = [y.grad for y in phi]; del m,q,phi,o,l,y
        if G is None: G = g
        else:
            for y,z in zip(G, g): y.add_(z)
        del g
    update(opt, [g.div_(len(pairs)) for g in G])
    return total/len(pairs)

def learn2learn(b, p, pairs, opt):
    "Every task's clone takes gradients of everything and lives until all query losses go backward together"
    kept,total = [],0.
    for x in pairs:
        m,q = b.clone().train(),copy.deepcopy(p); phi = [*m.model.parameters(), *q.parameters()]; o = inner(list(q.parameters()))
        for y in phi: y.requires_grad_(True)
        for k in range(STEPS):
            for y,g in zip(phi, torch.autograd.grad(our_loss(m, q, x[k*BATCH:(k+1)*BATCH]), phi)): y.grad = g
            o.step()
        for y in phi: y.grad = None
        total = total+our_loss(m, q, x[-BATCH:]); kept.append(phi)
    total = total/len(pairs); total.backward(); update(opt, [sum(g) for g in zip(*([y.grad for y in phi] for phi in kept))])
    return total.item()

def multitask(b, p, pairs, opt):
    "One step on as many examples as the query batches hold, cut as ours is"
    from promptbench.train.fit import backward, token_nll
    from promptbench.train.meta import _pieces
    parts = _pieces([x[-BATCH:] for x in pairs], PIECE or 4096, b.device, 0); loss = backward(parts, token_nll(b, p)).item(); opt.step(); opt.zero_grad()
    return loss

def sides(kind, dev):
    b,p,c,draws,pairs = setting(kind, dev); b.train()
    mine = lambda: (x:=copy.deepcopy((b,p)), outer(*x))
    def fresh(f): (m,q),opt = mine(); return lambda: f(m, q, opt)
    out = dict(ours=fresh(lambda m,q,opt: ours(m, q, c, draws, opt)), multitask=fresh(lambda m,q,opt: multitask(m, q, pairs, opt)), learn2learn=fresh(lambda m,q,opt: learn2learn(m, q, pairs, opt)),
               same_forward=fresh(lambda m,q,opt: clones(m, q, pairs, opt, our_loss, lambda m: m.model.parameters())))
    if kind=='shallow':
        from tune import plain_model
        from promptbench.train.adafactor import Adafactor
        m,t = plain_model(b).train(),p.table.detach().clone().requires_grad_(); opt = Adafactor([*m.parameters(), t], LR, clip=1.)
        out['clones'] = lambda: clones(m, t, pairs, opt, plain_loss, lambda m: m.parameters())
    return out

# --- memory ----------------------------------------------------------------------------------------------------------
def peak(f)->float:
    "MB of resident memory that `f` adds at its highest"
    status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))/1024
    f() # libraries, caches and the optimiser's state
    open('/proc/self/clear_refs','w').write('5'); before = status('VmRSS'); f()
    return status('VmHWM')-before

def memory(kind, side)->float:
    args = ['--small'] if small() else []
    r = subprocess.run([sys.executable, __file__, '--side', side, '--kind', kind, '--threads', '1', '--no-record', *args], capture_output=True, text=True, env=os.environ|MALLOC)
    if r.returncode: raise SystemExit(r.stderr[-2000:])
    return float(r.stdout.split()[-1])

def counted(f, out:list):
    "`f`, noting the processor time it takes: on a machine with other work, steadier than the clock"
    def g(): t = time.process_time(); f(); out.append(time.process_time()-t)
    return g

if __name__=='__main__':
    p = parser(__doc__); p.add_argument('--side', help='print the peak memory of one side and end'); p.add_argument('--kind', default='shallow', choices=['shallow','deep']); o = p.parse_args(); options()
    run = sides(o.kind, 'cpu' if o.side else device())
    if o.side: print(peak(run[o.side])); raise SystemExit
    first = {k: f() for k,f in run.items() if k!='multitask'}; assert max(first.values())-min(first.values())<1e-3, first   # all sides compute the same thing
    figures = {}
    for name in [n for n in ('clones','same_forward','learn2learn') if n in run]:
        cpu = dict(ours=[], theirs=[]); a,t = interleave(counted(run['ours'], cpu['ours']), counted(run[name], cpu['theirs']), warmup=0); r,spread = ratio_of(a, t)
        figures |= {f'ratio_{name}': r, f'spread_{name}': spread, f'seconds_ours_beside_{name}': middle(a)[0], f'seconds_{name}': middle(t)[0], f'processor_time_{name}': ratio_of(*cpu.values())[0]}
        print(name, figures, file=sys.stderr, flush=True)
    head = 'clones' if 'clones' in run else 'same_forward'; ratio,spread = figures.pop(f'ratio_{head}'),figures.pop(f'spread_{head}')
    if device()=='cpu':
        mb = {s: memory(o.kind, s) for s in ('multitask','ours','same_forward','learn2learn')}; extra = {s: mb[s]-mb['multitask'] for s in mb}
        figures |= dict(megabytes=mb, extra_over_multitask=extra, ratio_memory=extra['same_forward']/max(extra['ours'], 1.), goal_memory=10)
    figures |= dict(goal_same_forward=1.) if 'ratio_same_forward' in figures else {}   # the bank against clones, without what our forward pass saves
    report('meta', ratio, 4 if device()=='cuda' else 1.3, spread=spread, kind=o.kind, **figures)
