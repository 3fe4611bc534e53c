"Packed rows against padded batches: losses, gradients, what an example may see, rows that are cut, models of other kinds"
import pytest, torch
from promptbench.base.core import UserError
from promptbench.model.attention import Segments, attend
from promptbench.model.backbone import Backbone, freeze, random_backbone, unfreeze
from promptbench.model.batch import Packed, cut_rows, make_batch, mtl_batches, pack
from promptbench.train.fit import backward, micro_batches, token_nll
from promptbench.prompt.inits import new_prompt
import promptbench.prompt.packed as packed_page
from promptbench.prompt.packed import target_nll

def gen(seed=0): return torch.Generator().manual_seed(seed)
def some_pairs(n=9, top=100, seed=0, longest=40):
    g = gen(seed); ids = lambda hi: torch.randint(13, top, (int(torch.randint(0, hi, (1,), generator=g)),), generator=g).tolist()+[1]
    return [(ids(longest if i%4 else 5), ids(7 if i%3 else 20)) for i in range(n)]

PAIRS = some_pairs(); INDEX = [i%3 for i in range(len(PAIRS))]
MODELS = dict(v11=dict(), v10=dict(tie_word_embeddings=True, feed_forward_proj='relu'), deeper=dict(layers=(3,1), heads=4, head_dim=4))
@pytest.fixture(scope='module', params=list(MODELS))
def toy(request): return random_backbone(dim=32, **MODELS[request.param])
def bank_of(kind, backbone, n=1): return None if kind=='none' else new_prompt(kind, backbone, length=3, n=n, seed=4, init='normal')

def run(backbone, prompt, parts, n=0):
    "Loss and all gradients"
    params = dict(backbone.model.named_parameters())|({} if prompt is None else {f'prompt.{k}':p for k,p in prompt.named_parameters()})
    for p in params.values(): p.grad = None
    loss = backward(parts, token_nll(backbone, prompt), n)
    return loss,{k:p.grad.clone() for k,p in params.items() if p.grad is not None}

def same(a, b, eps=1e-4):
    (la,ga),(lb,gb) = a,b
    torch.testing.assert_close(la, lb, atol=1e-5, rtol=1e-5); assert set(ga)==set(gb) and ga
    for k in ga: assert (ga[k]-gb[k]).norm()<=eps*ga[k].norm()+1e-8, (k, (ga[k]-gb[k]).norm().item(), ga[k].norm().item())

# --- same loss, same gradients ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_packed_equals_padded(toy, kind):
    unfreeze(toy); p = bank_of(kind, toy); want = run(toy, p, [make_batch(PAIRS)])
    same(run(toy, p, [pack(PAIRS)]), want)
    same(run(toy, p, [pack([PAIRS[i] for i in row]) for row in cut_rows(PAIRS, 60)]), want)
    same(run(toy, p, [pack(PAIRS[::-1])]), want)

@pytest.mark.parametrize('kind', ['shallow','deep'])
@pytest.mark.parametrize('way', ['grouped','dense'])
def test_a_bank_packed_equals_a_bank_padded(toy, kind, way):
    freeze(toy); p = bank_of(kind, toy, 3); nll = lambda b: target_nll(toy, b, p, way)
    def go(parts):
        p.zero_grad(); loss = backward(parts, nll, 3); return loss,{'table': p.table.grad.clone()}
    want = go([make_batch(PAIRS, INDEX)]); same(go([pack(PAIRS, INDEX)]), want)
    same(go([pack([PAIRS[i] for i in r], [INDEX[i] for i in r]) for r in cut_rows(PAIRS, 50)]), want)
    assert (want[1]['table'].flatten(1).norm(dim=1)>0).all()

@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_flex_equals_dense_with_gradients(kind, monkeypatch):
    "FlexAttention as it stands, not compiled; its refusal to go backwards on a CPU is a matter of speed and lifted here"
    toy = random_backbone(dim=32, layers=(2,1))
    import torch.nn.attention.flex_attention as fa
    monkeypatch.setattr(fa, '_validate_device', lambda *_: None); unfreeze(toy); p = bank_of(kind, toy, 3)
    def go(way):
        params = [*toy.model.parameters(), *(p.parameters() if p else [])]
        for x in params: x.grad = None
        nll = target_nll(toy, pack(PAIRS, INDEX), p, way); (nll*torch.arange(1., len(nll)+1)).sum().backward()
        return nll.detach(),[x.grad for x in params]
    (a,ga),(b,gb) = go('flex'),go('dense'); torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for x,y in zip(ga, gb): assert (x is None)==(y is None) and (x is None or (x-y).norm()<=1e-4*y.norm()+1e-6)

def test_tiles_for_flex_miss_nothing():
    "Every pair that may be seen lies in a tile that is computed"
    from promptbench.model.attention import _block_mask, _places
    g = gen(1); lens = lambda: torch.randint(1, 90, (12,), generator=g)
    for causal in (False,True):
        q = lens(); cut = Segments(q, q if causal else lens(), causal=causal); P = 5
        pads = [-int(q.sum())%128, -int(cut.k_len.sum()+12*P)%128]; m = _block_mask(cut, P, *pads, 'cpu', 128)
        q_own,q_at,k_own,k_at = _places(cut, P, *pads, 'cpu'); see = (q_own[:,None]==k_own)&((k_at<=q_at[:,None]) if causal else torch.tensor(True))
        tiles = m.to_dense()[0,0].bool(); need = see.view(tiles.shape[0], 128, tiles.shape[1], 128).any(3).any(1)
        assert (tiles|~need).all() and tiles.float().mean()<.6
        assert torch.equal(m.mask_mod(0, 0, torch.arange(len(q_own))[:,None], torch.arange(len(k_own))[None]), see)

@pytest.mark.parametrize('pieces', [1,2,4])
@pytest.mark.parametrize('n', [0,3])
def test_accumulation_changes_nothing(pieces, n):
    toy = random_backbone(dim=32); p = bank_of('shallow', toy, 3); want = run(toy, p, [make_batch(PAIRS, INDEX)], n)
    rows = [list(range(i, len(PAIRS), pieces)) for i in range(pieces)]
    same(run(toy, p, [pack([PAIRS[i] for i in r], [INDEX[i] for i in r]) for r in rows], n), want)
    same(run(toy, p, [make_batch([PAIRS[i] for i in r], [INDEX[i] for i in r]) for r in rows], n), want)

def test_padded_and_packed_pieces_may_be_mixed():
    toy = random_backbone(dim=32); same(run(toy, None, [pack(PAIRS[:4]), make_batch(PAIRS[4:])]), run(toy, None, [make_batch(PAIRS)]))

@pytest.mark.parametrize('kind', ['none','shallow','deep'])
@pytest.mark.parametrize('model', ['llama','qwen','mistral','neox','gpt2'])
def test_decoder_only_models(model, kind):
    toy = random_backbone(kind=model, dim=32); p = bank_of(kind, toy, 3)
    same(run(toy, p, [pack(PAIRS, INDEX)], 3), run(toy, p, [make_batch(PAIRS, INDEX)], 3))

def test_a_text_longer_than_the_window_is_refused():
    toy = random_backbone(kind='mistral', dim=32, sliding_window=16)
    with pytest.raises(UserError, match='looks back 16 positions'): target_nll(toy, pack(PAIRS))

# --- who sees whom ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('way', ['grouped','dense'])
@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_nothing_of_a_neighbour_is_seen(toy, kind, way):
    "Loss of one example: the gradient at every other example's ids and prompt is exactly 0"
    unfreeze(toy); p = bank_of(kind, toy, len(PAIRS)); seen = []
    def keep(m, a, out): out.retain_grad(); seen.append(out)
    hooks = [m.register_forward_hook(keep) for m in (toy.model.get_input_embeddings(), toy.model.get_decoder().embed_tokens)]
    try: nll = target_nll(toy, pack(PAIRS, range(len(PAIRS))), p, way)
    finally: [h.remove() for h in hooks]
    nll.split([len(t) for _,t in PAIRS])[4].sum().backward(); source,target = (x.grad.reshape(-1, x.shape[-1]) for x in seen)
    for side,g in ((0,source),(1,target)):
        for i,part in enumerate(g.split([len(x[side]) for x in PAIRS])): assert (part.abs().max()>0)==(i==4)
    if p is not None: assert [(x.abs().max()>0).item() for x in p.table.grad]==[i==4 for i in range(len(PAIRS))]

def test_later_target_tokens_are_not_seen(toy):
    changed = [(s, t[:-1]+[50]) if i==2 else (s,t) for i,(s,t) in enumerate(PAIRS)]; at = sum(len(t) for _,t in PAIRS[:3])-1
    a,b = (target_nll(toy, pack(x)).detach() for x in (PAIRS, changed)); differ = (a!=b).nonzero().flatten().tolist()
    assert differ==[at]

@pytest.mark.parametrize('precision', ['fp32','bf16'])
@pytest.mark.parametrize('kind', ['none','shallow','deep'])
def test_no_nan(precision, kind):
    "Examples of one token beside long ones; a batch with an empty example, whose row sees nothing"
    toy = random_backbone(dim=32); toy.precision = precision; p = bank_of(kind, toy); pairs = [([1],[1]), *some_pairs(4, longest=90), ([1],[5,1])]
    loss,grads = run(toy, p, [pack(pairs)]); assert loss.isfinite() and all(g.isfinite().all() for g in grads.values())
    torch.testing.assert_close(loss, run(toy, p, [make_batch(pairs)])[0], atol=.03 if precision=='bf16' else 1e-5, rtol=0)
    b = make_batch(pairs); b.src_mask_BT[0] = 0; b.tgt_mask_BU[0] = 0
    loss,grads = run(toy, p, [b]); assert loss.isfinite() and all(g.isfinite().all() for g in grads.values())

def test_dropout_acts_on_packed_rows():
    from promptbench.train.fit import training
    toy = random_backbone(dim=32)
    with training(toy.model, .3): a,b = (target_nll(toy, pack(PAIRS)).detach() for _ in range(2))
    assert not torch.equal(a, b) and torch.equal(*(target_nll(toy, pack(PAIRS)).detach() for _ in range(2)))
    with training(toy.model, .3), pytest.raises(UserError, match='cannot drop attention weights'): target_nll(toy, pack(PAIRS), None, 'flex')

def test_the_model_is_left_as_it_was(toy):
    b = make_batch(PAIRS); want = target_nll(toy, b); target_nll(toy, pack(PAIRS)); assert torch.equal(target_nll(toy, b), want)
    with pytest.raises(UserError, match='attention must be one of'): target_nll(toy, pack(PAIRS), None, 'magic')
    assert torch.equal(target_nll(toy, b), want)

# --- the output layer ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('make', [pack, make_batch])
def test_logits_in_chunks(toy, make, monkeypatch):
    unfreeze(toy); p = bank_of('shallow', toy); want = run(toy, p, [make(PAIRS)])
    monkeypatch.setattr(packed_page, 'CHUNK', 7*toy.vocab); same(run(toy, p, [make(PAIRS)]), want)

def test_padding_reaches_no_output_layer(toy):
    seen = []; hook = toy.model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(a[0].shape[:-1].numel()))
    try: [target_nll(toy, x) for x in (make_batch(PAIRS), pack(PAIRS))]
    finally: hook.remove()
    assert seen==[sum(len(t) for _,t in PAIRS)]*2

# --- rows ------------------------------------------------------------------------------------------------------------
def test_rows_hold_every_example_once():
    pairs = some_pairs(200, seed=3)
    for tokens in (1, 60, 500, 10**6):
        rows = cut_rows(pairs, tokens, extra=2); size = [sum(len(pairs[i][0])+len(pairs[i][1])+2 for i in r) for r in rows]
        assert sorted(i for r in rows for i in r)==list(range(200)) and all(s<=tokens or len(r)==1 for s,r in zip(size, rows))
        if tokens==500: assert len(rows)<=sum(size)//500+2 and min(size)>.7*max(size)

def test_an_update_holds_the_same_examples_packed_or_not():
    pairs = some_pairs(60, seed=5)
    for padded,rows in zip(mtl_batches(pairs, batch_size=16, seed=1), mtl_batches(pairs, batch_size=16, seed=1, row_tokens=70), strict=True):
        alone = lambda x, n: sorted(tuple(p.tolist()) for p in torch.split(x, n.tolist()))
        assert sorted(tuple(s[:n].tolist()) for s,n in zip(padded.src_BT, padded.src_mask_BT.sum(1)))==sorted(t for r in rows for t in alone(r.src_T, r.src_len_B))
        assert padded.tokens==sum(r.tokens for r in rows) and len(padded)==sum(map(len, rows)) and len(rows)>1

def test_absolute_positions_are_refused():
    from transformers import BartConfig, BartForConditionalGeneration
    m = BartForConditionalGeneration(BartConfig(vocab_size=120, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64)).eval()
    bart = Backbone('bart', m, random_backbone().tokenizer)
    with pytest.raises(UserError, match='has absolute ones. Train it with packed=False'): target_nll(bart, pack(PAIRS))
    b = make_batch(PAIRS); assert target_nll(bart, b).shape==b.tgt_BU.shape
