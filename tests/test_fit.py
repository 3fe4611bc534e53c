"Adafactor against transformers and against itself, and a loop whose result does not depend on how it was cut"
import itertools, pytest, torch
from torch import nn
from promptbench.base.core import UserError
from promptbench.model.batch import make_batch
from promptbench.train.adafactor import Adafactor, grad_norm
from promptbench.train.fit import backward, fit, micro_batches, training

def gen(*seed): return torch.Generator().manual_seed(sum(seed))
SHAPES = [(7,), (5,9), (3,1), (1,6), (2,4,5)]

def grads(params, step):
    "Gradients of very different sizes, the same for the same shapes"
    for i,p in enumerate(params): p.grad = torch.randn(p.shape, generator=gen(100*step, i))*10.**(step%5-3)

def hf(params, lr):
    from transformers.optimization import Adafactor as Peer
    return Peer(params, lr=lr, scale_parameter=False, relative_step=False, warmup_init=False)

@pytest.mark.parametrize('lr', [1e-3, 0.3])
@pytest.mark.parametrize('clip', [None, 1.0])
def test_equals_transformers(lr, clip):
    mine,peer = ([nn.Parameter(torch.randn(s, generator=gen(i))) for i,s in enumerate(SHAPES)] for _ in range(2))
    a,b = Adafactor(mine, lr, clip=clip), hf(peer, lr)
    for k in range(20):
        grads(mine, k); grads(peer, k)
        norm = a.step()
        if clip: torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(peer, clip))
        b.step()
        for p,q in zip(mine, peer): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)

def test_groups_have_their_own_rate():
    mine,peer = ([nn.Parameter(torch.randn(s, generator=gen(i))) for i,s in enumerate(SHAPES[:2])] for _ in range(2))
    a = Adafactor([dict(params=mine[:1]), dict(params=mine[1:], lr=.1)], 1e-3); bs = hf(peer[:1], 1e-3),hf(peer[1:], .1)
    for k in range(20):
        grads(mine, k); grads(peer, k); a.step(); [b.step() for b in bs]
    for p,q in zip(mine, peer): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)

def test_scaled_steps_equal_transformers():
    from transformers.optimization import Adafactor as Peer
    mine,peer = ([nn.Parameter(torch.randn(s, generator=gen(i))*5) for i,s in enumerate(SHAPES)] for _ in range(2))
    a,b = Adafactor(mine, .01, scale=True), Peer(peer, lr=.01, scale_parameter=True, relative_step=False)
    for k in range(5): grads(mine, k); grads(peer, k); a.step(); b.step()
    for p,q in zip(mine, peer): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)

@pytest.mark.parametrize('scale', [False, True])
def test_bank_equals_separate_optimisers(scale):
    "Statistics, update clipping, gradient clipping (over both tensors of a prompt) and scaling"
    N = 4; shapes = [(6,8), (5,)]
    bank = [nn.Parameter(torch.randn(N,*s, generator=gen(i))) for i,s in enumerate(shapes)]
    single = [[nn.Parameter(p[n].detach().clone()) for p in bank] for n in range(N)]
    together = Adafactor(bank, .01, lead=1, clip=1.0, scale=scale); alone = [Adafactor(s, .01, clip=1.0, scale=scale) for s in single]
    for k in range(20):
        for i,p in enumerate(bank):
            p.grad = torch.randn(p.shape, generator=gen(k,i))*torch.tensor([1e-4,.1,1,100])[:,None,None].view(N,*[1]*(p.ndim-1))
            for n in range(N): single[n][i].grad = p.grad[n].clone()
        norms = together.step()
        for n in range(N): torch.testing.assert_close(norms[n], alone[n].step())
    for i,p in enumerate(bank):
        for n in range(N): torch.testing.assert_close(p[n], single[n][i], atol=1e-6, rtol=1e-6)

def test_bank_of_one_equals_a_whole():
    a,b = (nn.Parameter(torch.randn(1,6,8, generator=gen(1))) for _ in range(2))
    oa,ob = Adafactor([a], .01, clip=1.0),Adafactor([b], .01, lead=1, clip=1.0)
    for k in range(10): grads([a],k); grads([b],k); oa.step(); ob.step()
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)

def test_state_goes_on():
    straight,broken = ([nn.Parameter(torch.randn(s, generator=gen(i))) for i,s in enumerate(SHAPES)] for _ in range(2))
    a,b = Adafactor(straight, .01),Adafactor(broken, .01)
    for k in range(10):
        if k==5: c = Adafactor(broken, .01); c.load_state_dict(b.state_dict()); b = c
        grads(straight,k); grads(broken,k); a.step(); b.step()
    for p,q in zip(straight, broken): assert torch.equal(p, q)
    with pytest.raises(UserError, match='more tensors'): Adafactor(broken[:1], .01).load_state_dict(b.state_dict())

def test_tensors_without_gradient_stay():
    a,b = (nn.Parameter(torch.ones(3)) for _ in range(2)); a.grad = torch.ones(3)
    Adafactor([a,b], .1).step()
    assert (b==1).all() and (a!=1).all()
    with pytest.raises(UserError, match='no gradient reached'): Adafactor([nn.Parameter(torch.ones(2))], .1).step()

def test_rate_may_depend_on_the_step():
    a = nn.Parameter(torch.zeros(4)); o = Adafactor([a], lambda step: .1*(step+1))
    for want in (-.1, -.3, -.6):
        a.grad = torch.ones(4); o.step(); torch.testing.assert_close(a.detach(), torch.full((4,), want))

class Net(nn.Module):
    "A tiny encoder-decoder stand-in with dropout"
    def __init__(self, seed=0):
        super().__init__(); g = gen(seed)
        self.src,self.tgt = (nn.Parameter(torch.randn(20,6, generator=g)) for _ in range(2)); self.prompt = nn.Parameter(torch.randn(3,6, generator=g)); self.drop = nn.Dropout(.0)
    def nll(self, b):
        h_BD = (self.src[b.src_BT]*b.src_mask_BT[...,None]).sum(1)+self.prompt[b.index_B]
        logits_BUV = (self.drop(h_BD)[:,None]+self.tgt[nn.functional.pad(b.tgt_BU[:,:-1], (1,0))]*.1)@self.tgt.T
        return nn.functional.cross_entropy(logits_BUV.transpose(1,2), b.tgt_BU, reduction='none')*b.tgt_mask_BU

def batches(n=6, B=12):
    r = gen(5)
    def ids(lo, hi): return torch.randint(3,20,(int(torch.randint(lo,hi,(1,), generator=r)),), generator=r).tolist()
    return [make_batch([(ids(2,9),ids(1,5)) for _ in range(B)], index=torch.randint(0,3,(B,), generator=r), multiple=4) for _ in range(n)]

@pytest.mark.parametrize('n', [0,3])
def test_micro_batches_change_nothing(n):
    def run(tokens):
        net = Net(); loss = sum(backward(micro_batches(b, tokens), net.nll, n) for b in batches(2))
        return loss,[p.grad for p in net.parameters()]
    (loss,whole) = run(None)
    for tokens in (1, 30, 64, 10**6):
        l,g = run(tokens); torch.testing.assert_close(l, loss, atol=1e-6, rtol=1e-5)
        for a,b in zip(whole, g): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

def test_micro_batches_keep_every_row_and_the_limit():
    for b in batches():
        parts = micro_batches(b, 40)
        assert sum(len(p) for p in parts)==len(b) and sum(p.tokens for p in parts)==b.tokens
        assert all(len(p)==1 or p.src_BT.numel()+p.tgt_BU.numel()<=40 for p in parts) and len(parts)>2
        assert torch.equal(torch.cat([p.index_B for p in parts]), b.index_B)

def test_loss_is_the_token_mean():
    b = batches(1)[0]; net = Net(); nll = net.nll(b).detach()
    torch.testing.assert_close(backward([b], net.nll), (nll.sum()/b.tgt_mask_BU.sum()).view(1))
    for n,l in enumerate(backward([b], net.nll, 3)):
        at = b.index_B==n; torch.testing.assert_close(l, nll[at].sum()/b.tgt_mask_BU[at].sum())

def run(bs, start=0, net=None, opt=None, seed=0):
    net = net or Net(); opt = opt or Adafactor(net.parameters(), .05, clip=1.0)
    with training(net, .3): rows = list(fit(bs, net.nll, opt, seed=seed, start=start))
    return [r['loss'] for r in rows],net,opt

def test_seed_decides_dropout_and_a_run_goes_on():
    bs = batches(10, 4); straight,net,_ = run(bs)
    torch.manual_seed(123); again,_,_ = run(bs); assert again==straight
    assert run(bs, seed=1)[0]!=straight
    first,half,opt = run(bs[:5]); second,half,_ = run(bs[5:], 5, half, opt)
    assert first+second==straight and all(torch.equal(a,b) for a,b in zip(net.parameters(), half.parameters()))

def test_loop_leaves_the_callers_generator_alone():
    torch.manual_seed(7); want = torch.rand(3); torch.manual_seed(7); run(batches(2)); assert torch.equal(torch.rand(3), want)

def test_not_finite_stops_before_harm():
    net = Net(); opt = Adafactor(net.parameters(), .05); start = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(UserError, match='loss must stay finite, got .nan. at step 3; lower the learning rate'):
        list(fit(batches(1), lambda b: net.nll(b)*float('nan'), opt, start=3))
    assert all(torch.equal(a,b) for a,b in zip(net.parameters(), start))

def test_rows_come_one_by_one():
    net = Net(); rows = fit(itertools.cycle(batches()), net.nll, Adafactor(net.parameters(), .05))
    assert [next(rows)['step'] for _ in range(3)]==[0,1,2]
