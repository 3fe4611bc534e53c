"""Attention of packed rows in kernels of our own, against the whole square written out

On a GPU, or on a CPU with TRITON_INTERPRET=1 where Triton is installed; what needs no kernel runs everywhere."""
import os
import pytest, torch
from promptbench.base.core import UserError
from promptbench.model.attention import Segments, _dense
from promptbench.model.backbone import random_backbone, unfreeze
from promptbench.model.batch import pack
from promptbench.prompt.inits import new_prompt
from promptbench.prompt.packed import target_nll
import promptbench.model.fused as page
from promptbench.model.fused import blocks, fused, tiles, unfit

INTERPRETED = page.triton is not None and os.environ.get('TRITON_INTERPRET')=='1'
DEV = 'cuda' if torch.cuda.is_available() and not INTERPRETED else 'cpu'
HERE = page.triton is not None and (INTERPRETED or DEV=='cuda')
runs = pytest.mark.skipif(not HERE, reason='needs Triton, and a GPU or TRITON_INTERPRET=1')
LOW = torch.bfloat16 if DEV=='cuda' else torch.float16 # The interpreter has no products in bfloat16

@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    "Triton 3.6's interpreter makes ends of loops from arrays of one number, which numpy from 2.4 on refuses to turn into one"
    if INTERPRETED:
        import triton.runtime.interpreter as it
        old = it._patch_lang_tensor
        def patch(tensor, scope): old(tensor, scope); scope.set_attr(tensor, '__index__', lambda self: int(self.handle.data.item()))
        monkeypatch.setattr(it, '_patch_lang_tensor', patch)

def rand(*shape, seed): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
LENS = [1,15,64,65,130]; SHORT = [70,1,3,20,2]
CASES = dict(encoder=dict(table=True), decoder=dict(table=True, causal=True), cross=dict(q_len=SHORT), plain=dict(causal=True), long_table=dict(table=True, spare=9),
    encoder_prompt=dict(table=True, P=5), decoder_prompt=dict(table=True, causal=True, P=20), cross_prompt=dict(q_len=SHORT, P=33),
    encoder_shared=dict(table=True, P=20, shared=True), decoder_shared=dict(table=True, causal=True, P=5, shared=True), cross_shared=dict(q_len=SHORT, P=5, shared=True))

def inputs(q_len=LENS, k_len=LENS, *, K=16, H=2, table=False, spare=0, P=0, shared=False, causal=False):
    "The lengths, and what has gradients: queries, keys, values as views of rows, table, prompt"
    B = len(q_len); row = lambda n, s: rand(1, n, H, K, seed=s).transpose(1,2)
    x = dict(q=row(sum(q_len),0), k=row(sum(k_len),1), v=row(sum(k_len),2))
    if table: x['table'] = rand(H, 2*(max(*q_len, *k_len)+spare)-1, seed=3)
    if P: x |= {n:rand(1 if shared else B, H, P, K, seed=s) for n,s in (('pk',4),('pv',5))}
    return Segments(torch.tensor(q_len), torch.tensor(k_len), causal=causal),x

def go(f, cut, x, *, dev, dtype=torch.float32, prompt_dtype=None, learnt=None):
    "Output and gradients of a weighted sum of it"
    low = lambda n: prompt_dtype if prompt_dtype and n in ('pk','pv','table') else dtype
    x = {n:t.to(dev, low(n)).detach().requires_grad_(learnt is None or n in learnt) for n,t in x.items()}
    prompt = [x[n].expand(len(cut.q_len), -1, -1, -1) for n in ('pk','pv')] if 'pk' in x else None
    out = f(cut, x['q'], x['k'], x['v'], prompt, x.get('table'), .6); (out.float()*rand(*out.shape, seed=9).to(dev)).sum().backward()
    return dict(out=out.detach(), **{n:t.grad for n,t in x.items()})

def want(cut, x): return go(lambda c, q, k, v, p, t, s: _dense(c, q, k, v, p, t, s, 0.), cut, x, dev='cpu')

def error(a, b): return ((a.cpu().float()-b).abs().max()/b.abs().max()).item()

# --- same numbers ----------------------------------------------------------------------------------------------------
@runs
@pytest.mark.parametrize('K', [16,64])
@pytest.mark.parametrize('case', CASES)
def test_as_the_whole_square(case, K):
    cut,x = inputs(K=K, **CASES[case]); a,b = go(fused, cut, x, dev=DEV),want(cut, x)
    assert a.keys()==b.keys() and all(a[n].shape==b[n].shape and error(a[n], b[n])<1e-4 for n in b), {n:error(a[n], b[n]) for n in b}

@runs
@pytest.mark.parametrize('K', [16,64,128])
@pytest.mark.parametrize('case', ['encoder_shared','decoder_prompt','cross'])
def test_in_low_precision(case, K):
    cut,x = inputs(K=K, **CASES[case]); x = {n:t.to(LOW).float() for n,t in x.items()}; b = want(cut, x)
    for other in (None,torch.float32):
        a = go(fused, cut, x, dev=DEV, dtype=LOW, prompt_dtype=other)
        assert all(error(a[n], b[n])<.03 for n in b), {n:error(a[n], b[n]) for n in b}
        assert all(t.dtype==(other if other and n in ('pk','pv','table') else LOW) for n,t in a.items())

@runs
@pytest.mark.parametrize('learnt', [['q'],['k'],['v'],['table'],['pk'],['pv'],['table','pv']])
def test_only_what_is_asked_for(learnt):
    cut,x = inputs([3,20], [3,20], **CASES['decoder_shared']); a,b = go(fused, cut, x, dev=DEV, learnt=learnt),want(cut, x)
    assert all(error(a[n], b[n])<1e-4 if n in learnt or n=='out' else a[n] is None for n in b)

@runs
def test_a_gradient_of_any_layout():
    cut,x = inputs([3,20], [3,20], table=True)
    q,k,v,t = (x[n].to(DEV).requires_grad_() for n in ('q','k','v','table')); out = fused(cut, q, k, v, None, t)
    a = torch.autograd.grad(out.sum(), (q,k,v,t), retain_graph=True); b = torch.autograd.grad(out, (q,k,v,t), torch.ones_like(out).transpose(1,2).contiguous().transpose(1,2))
    for p,r in zip(a, b): torch.testing.assert_close(p, r)
    flat = [z.contiguous() for z in (q,k,v)]; torch.testing.assert_close(fused(cut, *flat, None, t), out)

@runs
@pytest.mark.parametrize('kind', ['none','shallow','deep'])
@pytest.mark.parametrize('model', ['t5','llama'])
def test_in_a_model(model, kind):
    toy = random_backbone(**{} if model=='t5' else dict(kind=model), dim=32, heads=2, head_dim=16); unfreeze(toy); p = None if kind=='none' else new_prompt(kind, toy, length=3, n=3, seed=4, init='normal')
    pairs = [(list(range(13, 14+n)), list(range(20, 21+m))) for n,m in ((40,3),(1,1),(7,20))]
    def all_of(way, dev):
        toy.model.to(dev); p and p.to(dev); params = [*toy.model.parameters(), *(p.parameters() if p else [])]
        for w in params: w.grad = None
        nll = target_nll(toy, pack(pairs, [0,1,2]), p, way); (nll*torch.arange(1., len(nll)+1, device=dev)).sum().backward()
        return nll.detach().cpu(),[None if w.grad is None else w.grad.cpu() for w in params]
    (a,ga),(b,gb) = all_of('fused', DEV),all_of('dense', 'cpu'); torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for u,w in zip(ga, gb): assert (u is None)==(w is None) and (u is None or (u-w).norm()<=1e-3*w.norm()+1e-6)

# --- who uses it -----------------------------------------------------------------------------------------------------
@runs
@pytest.mark.skipif(DEV!='cuda', reason='needs a GPU')
def test_auto_on_a_gpu():
    x = torch.zeros(1, 2, 5, 16, device='cuda'); n = torch.tensor([5]); cut = Segments(n, n); odd = torch.zeros(1, 2, 5, 24, device='cuda')
    assert unfit(x, x, x)=='' and cut._chosen(x, x, x, 0.)=='fused' and cut._chosen(x, x, x, .1)=='grouped' and cut._chosen(odd, odd, odd, 0.)=='grouped' and cut._chosen(x, x, x.bfloat16(), 0.)=='grouped'

def test_auto_on_a_cpu():
    x = torch.zeros(1, 2, 5, 16); n = torch.tensor([5]); assert Segments(n, n)._chosen(x, x, x, 0.)=='grouped'

def test_refusals():
    x = torch.zeros(1, 2, 5, 24); n = torch.tensor([5]); cut = Segments(n, n, way='fused')
    with pytest.raises(UserError, match='attention fused cannot drop attention weights'): cut(x, x, x, None, None, 1., .1)
    with pytest.raises(UserError, match='attention fused needs (Triton|a GPU|heads).*choose attention grouped'): cut(x, x, x, None, None, 1., 0.)

@pytest.mark.parametrize('causal', [False,True])
def test_blocks_cover_everything_once(causal):
    q = torch.tensor([1,15,64,65,130]); k = q if causal else torch.tensor([30,1,2,200,64]); cut = Segments(q, k, causal=causal); how = tiles(torch.bfloat16, 64)
    *parts,size = blocks(cut, 20, how, 'cpu'); rows = lambda b, n, width: sorted((int(x[0]),i) for x in b for i in range(int(x[1]), min(int(x[1])+width, int(n[x[0]]))))
    every = lambda n: sorted((b,i) for b,m in enumerate(n.tolist()) for i in range(m))
    for b,n,width in ((parts[0],q,how[0][0]), (parts[1],q,how[1][0]), (parts[2],k,how[2][0]), (parts[3],torch.full_like(q, 20),page.prompt_rows(20)), (parts[4],q+(0 if causal else k-1),page.RUN)): assert rows(b, n, width)==every(n)
    ends = sorted({(int(x[6])*16,int(x[6])*16+int(q[x[0]])*(-(-int(k[x[0]])//16)*16)) for x in parts[0]}); assert ends[0][0]==0 and ends[-1][1]==size*16 and all(a[1]==b[0] for a,b in zip(ends, ends[1:]))
