"The faster product against torch's own: values, all gradients, derivatives of derivatives, and when it stays out of the way"
import copy
import pytest, torch
from torch import nn
from promptbench.base.core import UserError
import promptbench.model.linear as page
from promptbench.model.linear import faster, onednn_pays
from promptbench.model.backbone import random_backbone, weight_hashes

@pytest.fixture(autouse=True)
def take_it(monkeypatch):
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, '_linear_pointwise'): pytest.skip('this torch has no oneDNN')
    monkeypatch.setattr(page, 'onednn_pays', lambda: True)

def pair(bias):
    torch.manual_seed(0); a = nn.Linear(48,24,bias=bias); return a,faster(nn.Sequential(copy.deepcopy(a)))[0]

@pytest.mark.parametrize('bias', [True,False])
@pytest.mark.parametrize('shape', [(48,), (5,48), (2,3,48), (2,3,4,48), (0,48)])
def test_values_and_gradients(bias, shape):
    a,b = pair(bias); x,y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    p,q = a(x),b(y); torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-5)
    p.sin().sum().backward(); q.sin().sum().backward()
    for s,t in zip([x,*a.parameters()], [y,*b.parameters()]): torch.testing.assert_close(t.grad, s.grad, atol=1e-5, rtol=1e-5)

def test_strides_and_second_derivatives():
    a,b = pair(False); out = []
    for m in (a,b):
        x = torch.randn(48,7, generator=torch.Generator().manual_seed(2)).t().requires_grad_(); g, = torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)
        out.append(torch.autograd.grad(g.square().sum(), [x, m.weight]))
    for s,t in zip(*out): torch.testing.assert_close(t, s, atol=1e-2, rtol=1e-4)

def test_a_frozen_layer_keeps_no_input():
    _,b = pair(False); b.requires_grad_(False); x = torch.randn(6,48).requires_grad_(); kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t): b(x)
    assert (6,48) not in kept and (24,48) in kept

def test_other_types_take_the_usual_way(monkeypatch):
    a,b = pair(True); monkeypatch.setattr(page, '_product', lambda *_: pytest.fail('took the fp32 way'))
    x = torch.randn(3,48)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(a(x), b(x))
    assert torch.equal(a.double()(x.double()), b.double()(x.double()))

def test_a_backbone_stays_what_it_was():
    b = random_backbone(seed=0); assert weight_hashes(b)==weight_hashes(b.clone()) and all(isinstance(m, nn.Linear) for m in b.model.modules() if 'Linear' in type(m).__name__)
    ids = torch.tensor([[20,21,1]]); mine = b.model(input_ids=ids, labels=ids).logits
    for m in b.model.modules():
        if isinstance(m, nn.Linear): m.__class__ = nn.Linear
    torch.testing.assert_close(mine, b.model(input_ids=ids, labels=ids).logits, atol=1e-5, rtol=1e-5)

def test_the_variable_decides(monkeypatch):
    for wish,says in (('mkl',False),('onednn',True)):
        monkeypatch.setenv('PROMPTBENCH_LINEAR', wish); assert onednn_pays.__wrapped__() is says
    monkeypatch.setenv('PROMPTBENCH_LINEAR', 'blas')
    with pytest.raises(UserError, match='must be .auto., .mkl. or .onednn.'): onednn_pays.__wrapped__()
