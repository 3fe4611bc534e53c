"Directions of the meta-learners: a naive reference that copies the whole model for every task, and closed forms"
import copy, itertools, pytest, torch
from dataclasses import replace
from functools import partial
from promptbench.base.core import UserError, rng
from promptbench.model.backbone import weight_hashes
from promptbench.model.batch import make_batch
from promptbench.train.fit import token_nll
from promptbench.prompt.forward import forward, sequence_nll
from promptbench.train.maml import maml, maml_direction, maml_memory
from promptbench.train.draws import task_batches
from promptbench.train.meta import MetaConfig, Wave, _waves, direction, meta_methods
from meta_cell import CELLS, cell, suite

# --- the naive reference ---------------------------------------------------------------------------------------------
def optimizer(config, params):
    from transformers.optimization import Adafactor
    if config.inner=='adafactor': return Adafactor(params, lr=config.inner_lr, scale_parameter=False, relative_step=False, warmup_init=False)
    return dict(sgd=torch.optim.SGD, adam=torch.optim.Adam)[config.inner](params, lr=config.inner_lr)

def loss_of(model, prompt, pairs, config):
    b = make_batch(pairs); nll = sequence_nll(forward(model, b, prompt), b.tgt_BU, b.tgt_mask_BU)
    return nll.sum()/b.tgt_mask_BU.sum() if config.loss=='token' else (nll.sum(1)/b.tgt_mask_BU.sum(1)).mean()

def step(opt, params, config):
    if config.inner_clip: torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], config.inner_clip)
    opt.step()

def mean_state(states):
    "Mean over tasks of every statistic, by parameter and name"
    return {i: {k: torch.stack([s['state'][i][k] for s in states]).mean(0) if torch.is_tensor(v) and v.ndim else v for k,v in one.items()} for i,one in states[0]['state'].items()}

def naive(backbone, prompt, pairs, config, state=None):
    "Directions by one deep copy of model and prompt per task, one task after another; waves start from a common state"
    theta = [*backbone.model.parameters(), *prompt.parameters()]; G = [torch.zeros_like(p) for p in theta]; B,L = config.batch_size,config.lanes or len(pairs)
    for a in range(0, len(pairs), L):
        after = []
        for p in pairs[a:a+L]:
            model,mine = copy.deepcopy(backbone),copy.deepcopy(prompt); phi = [*model.model.parameters(), *mine.parameters()]
            for x in phi: x.requires_grad_(False)
            mine.requires_grad_(True); opt = optimizer(config, phi)
            if state and config.carry!='fresh': d = opt.state_dict(); d['state'] = copy.deepcopy(state); opt.load_state_dict(d)
            for k in range(config.steps):
                opt.zero_grad(); loss_of(model, mine, p[k*B:(k+1)*B] if config.support=='different' else p[:B], config).backward(); step(opt, phi, config)
            for x in phi: x.requires_grad_(True)
            opt.zero_grad(); loss_of(model, mine, p[-B:], config).backward()
            if config.method=='reptile': step(opt, phi, config)
            for g,x,y in zip(G, theta, phi): g += y.grad if config.method=='fomaml' else (x-y).detach()
            after.append(copy.deepcopy(opt.state_dict()))
        state = mean_state(after)
    return [g/len(pairs) for g in G],state

def batch_of(backbone, config, n):
    "One meta-batch: draws, and the ids as the reference wants them"
    draws = list(itertools.islice(task_batches(suite().tasks('train'), config.draw, seed=n), config.tasks)); pairs = [backbone.pairs(e) for _,e in draws]
    for i,p in enumerate(pairs): rng('support', config.seed, n, i).shuffle(p)
    return draws,pairs

def both(config, backbone, prompt, n=0, state=(None,None), tokens=60):
    draws,pairs = batch_of(backbone, config, n); waves = _waves(backbone, draws, config, n, tokens)[0]
    before = weight_hashes(backbone),prompt.table.clone()
    (T,P),row,mine = direction(partial(token_nll, backbone), backbone.model.parameters(), prompt, waves, config, state=state[0])
    assert weight_hashes(backbone)==before[0] and torch.equal(prompt.table, before[1]) and all(p.grad is None for p in backbone.model.parameters())
    want,theirs = naive(backbone, prompt, pairs, config, state[1])
    return T+P, want, (mine,theirs), row

def close(got, want, theta, config, limit=1e-5):
    """Every tensor to 1e-5 of its norm, and of what the reference loses when Reptile subtracts two nearly equal weights.

    Not element by element: Adam's first step is the sign of the gradient, and the sign of a gradient near 0 is a coin toss."""
    theta = [*theta[0].model.parameters(), *theta[1].parameters()]; assert len(got)==len(want)==len(theta)
    lost = 6e-8 if config.method=='reptile' else 0.
    off = [((g-w).norm()/(w.norm()+lost/limit*t.norm()).clamp(min=1e-12)).item() for g,w,t in zip(got, want, theta)]
    assert max(off)<=limit, (max(off), off.index(max(off)))

@pytest.mark.parametrize('inner', ['sgd','adafactor'])
@pytest.mark.parametrize('method,prompt', CELLS)
def test_equals_a_copy_per_task(method, prompt, inner):
    b,p,config = cell(method, prompt, inner=inner, inner_lr=dict(sgd=.3, adafactor=.03)[inner])
    got,want,_,row = both(config, b, p); close(got, want, (b,p), config)
    assert all((w!=0).any() for w in want) and row['moved']>0

@pytest.mark.parametrize('changes', [dict(support='same'), dict(inner='adam'), dict(inner_clip=.02, inner='sgd', inner_lr=3.), dict(loss='example', inner='sgd'), dict(lanes=1), dict(lanes=3)], ids=str)
@pytest.mark.parametrize('method', meta_methods())
def test_options_equal_a_copy_per_task(method, changes):
    b,p,config = cell(method, **changes); b.model.double(); got,want,_,_ = both(config, b, p); close(got, want, (b,p), config)

@pytest.mark.parametrize('lanes,inner', [(1,'adafactor'),(3,'adafactor'),(3,'adam')])
@pytest.mark.parametrize('method', meta_methods())
def test_carried_statistics_equal_a_chain_of_copies(method, lanes, inner):
    "Two meta-batches of four tasks: waves of 1 (the paper's code), of 3 and 1"
    b,p,config = cell(method, carry='run', lanes=lanes, inner=inner); b.model.double(); state = None,None
    for n in range(2): got,want,state,_ = both(config, b, p, n, state); close(got, want, (b,p), config)
    fresh = both(replace(config, carry='fresh'), b, p, 1)[0]; assert not torch.allclose(fresh[-1], got[-1], rtol=1e-3, atol=0)

# --- closed forms ----------------------------------------------------------------------------------------------------
class Vector(torch.nn.Module):
    "A bank of vectors [N,1,X] in double precision"
    def __init__(self, table): super().__init__(); self.table = torch.nn.Parameter(table.detach().clone())
    def repeat(self, n): return Vector(self.table.repeat(n,1,1))
    def select(self, rows): return Vector(self.table[rows])

class Toy:
    "Support and query losses over theta = (T, p), three numbers each, the last three the prompt's: quadratic, or with a cubic term"
    def __init__(self, cubic=0.):
        g = torch.Generator().manual_seed(7); self.cubic = cubic; r = lambda *s: torch.randn(*s, generator=g, dtype=torch.double)
        half = r(2,6,6); self.H = half@half.mT/6; self.c,self.theta,self.third = r(2,6),r(6),r(2,6)
    def loss(self, i, theta): return theta@self.H[i]@theta/2-self.c[i]@theta+self.cubic*(self.third[i]*theta**3).sum()
    def gradient(self, i, theta): return self.H[i]@theta-self.c[i]+3*self.cubic*self.third[i]*theta**2
    def hessian(self, i, theta): return self.H[i]+6*self.cubic*torch.diag(self.third[i]*theta)
    def engine(self, method, lr, K):
        T,p = self.theta[:3].clone().requires_grad_(),Vector(self.theta[3:].view(1,1,3))
        nll_of = lambda bank: lambda b: self.loss(b.src_BT[0,0].item()-1, torch.cat([T, bank.table[b.index_B[0],0]])).view(1,1).float()
        s,q = ([make_batch([([i],[1])])] for i in (1,2))
        (G,P),_,_ = direction(nll_of, [T], p, [Wave(1, [s]*K, [q])], MetaConfig(method=method, tasks=1, steps=K, inner='sgd', inner_lr=lr))
        return torch.cat([G[0], P[0].flatten()])
    def maml(self, lr, K):
        def loss(T, p, i): return self.loss(i, torch.cat([T, p]))
        return torch.cat(maml(loss, self.theta[:3], self.theta[3:], [0]*K, 1, lr))

Pi = torch.diag(torch.tensor([0.,0,0,1,1,1], dtype=torch.double))

@pytest.mark.parametrize('K', [1,7])
def test_closed_forms_on_a_quadratic(K):
    "The inner loop is linear: theta_i - theta* shrinks by I - a Pi H at every step"
    t,a = Toy(),.05; gs = t.gradient(0, t.theta); U = torch.eye(6, dtype=torch.double)-a*Pi@t.H[0]
    moved = -a*sum(torch.linalg.matrix_power(U, i) for i in range(K))@Pi@gs; h = t.gradient(1, t.theta+moved)
    torch.testing.assert_close(t.engine('fomaml', a, K), h, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(t.engine('reptile', a, K), a*h-moved, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(t.maml(a, K), torch.linalg.matrix_power(U, K).T@h, atol=1e-6, rtol=1e-6)

@pytest.mark.parametrize('cubic', [0.,.2])
def test_residuals_of_the_expansions_shrink_with_the_square_of_the_rate(cubic):
    t,K = Toy(cubic),7; gs,gq,Hs,Hq = t.gradient(0,t.theta),t.gradient(1,t.theta),t.hessian(0,t.theta),t.hessian(1,t.theta)
    def residuals(a):
        fomaml = gq-K*a*Hq@Pi@gs
        return [(t.engine('fomaml', a, K)-fomaml).norm().item(), (t.maml(a, K)-(fomaml-K*a*Hs@Pi@gq)).norm().item(),
                (t.engine('reptile', a, K)/a-(K*Pi@gs+fomaml-K*(K-1)/2*a*Pi@Hs@Pi@gs)).norm().item()]
    big,small = residuals(2e-4),residuals(1e-4)
    assert all(x/y==pytest.approx(4, rel=.02) and y>0 for x,y in zip(big, small))

def test_second_order_equals_finite_differences():
    "MAML on a language model: the direction is the slope of the query loss after adaptation"
    b,p,_ = cell(prompt='deep'); supports,query = [make_batch(b.pairs(suite().tasks('train')[k].examples('train', 2))) for k in (0,1)],make_batch(b.pairs(suite().tasks('train')[2].examples('train', 3)))
    T,P = maml_direction(b, p, [(supports,query)], lr=.5); assert T.keys()=={n for n,_ in b.model.named_parameters()}
    double = b.clone(); double.model.double(); g = torch.Generator().manual_seed(0)
    def after(model, table):
        for s in [*supports, query]:
            prompt = Given('deep', table.detach().requires_grad_()); b = sequence_nll(forward(model, s, prompt), s.tgt_BU, s.tgt_mask_BU); loss = b.sum()/s.tgt_mask_BU.sum()
            if s is query: return loss.item()
            table = table-.5*torch.autograd.grad(loss, prompt.table)[0]
    name = 'encoder.block.0.layer.0.SelfAttention.v.weight'; w = dict(double.model.named_parameters())[name]; v = torch.randn(w.shape, generator=g).double(); u = torch.randn(p.table.shape, generator=g).double()
    eps = 1e-2; slopes = []
    for s in (eps,-eps):
        w.data += s*v; slopes.append(after(double, p.table.detach().double()+s*u)); w.data -= s*v
    assert (slopes[0]-slopes[1])/(2*eps)==pytest.approx(((T[name]*v).sum()+(P*u).sum()).item(), rel=1e-2)

class Given:
    kind = 'deep'
    def __init__(self, kind, table): self.kind,self.table = kind,table
    def placed(self, backbone, index_B): return None,self.table.expand(len(index_B), -1, -1)

def test_second_order_is_refused_before_it_starts():
    b,p,_ = cell(); s = make_batch(b.pairs(suite().tasks('train')[0].examples('train', 4)))
    assert maml_memory(b, p, [s]*8, s)>1.7*maml_memory(b, p, [s]*3, s)>0
    with pytest.raises(UserError, match='about .* GB, and may take 0.001 GB'): maml_direction(b, p, [([s]*3, s)], lr=.1, limit=1e6)
    with pytest.raises(UserError, match='at least one task'): maml_direction(b, p, [], lr=.1)
