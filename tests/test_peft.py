"Prompts to the PEFT library and back: the logits must be the same on both sides"
import json, re, warnings
import pytest, torch
from promptbench.base.core import UserError
from promptbench.model.batch import make_batch
from promptbench.model.backbone import load_backbone, random_backbone, save_backbone
from promptbench.prompt.forward import forward
from promptbench.prompt.inits import new_prompt
from promptbench.prompt.bank import ShallowPrompt
from promptbench.prompt.peft import export_peft, import_peft, import_table

peft = pytest.importorskip('peft', reason='the PEFT library is not installed: pip install -e .[test]')
pytestmark = [pytest.mark.filterwarnings(f'ignore:{w}') for w in ('the vectors in',':FutureWarning')]   # random weights: prompts of any scale
P = 5

# T5 v1.1: gated, an output layer of its own; v1.0: relu, shared and scaled; more encoder layers than decoder layers
KINDS = dict(gated=dict(), tied=dict(tie_word_embeddings=True, feed_forward_proj='relu'), uneven=dict(layers=(3,1), head_dim=12))

@pytest.fixture(scope='module', params=KINDS)
def place(request, tmp_path_factory):
    "A folder that save_backbone wrote, as PEFT's user would load it"
    b = random_backbone(dim=24, seed=1, **KINDS[request.param])
    return save_backbone(b, tmp_path_factory.mktemp('base')/request.param)

def plain(place):
    "The model as anybody else loads it: transformers' own class, own attention, nothing of ours"
    from transformers import AutoModelForSeq2SeqLM
    return AutoModelForSeq2SeqLM.from_pretrained(place).eval()

def batch(index=None):
    "Three right-padded examples"
    return make_batch([([20,21,22,23,24,1],[30,31,1]), ([40,41,1],[50,1]), ([60,1],[70,71,72,73,1])], index=index or [0,0,0])

def theirs(model, b, **more):
    with torch.no_grad(): return model(input_ids=b.src_BT, attention_mask=b.src_mask_BT, labels=b.tgt_BU.masked_fill(b.tgt_mask_BU==0, -100), **more).logits

def same(a, b, mask=None):
    "Equal to 1e-5 where a target token counts"
    gap = (a-b).abs() if mask is None else ((a-b).abs()*mask[...,None])
    assert gap.max()<=1e-5, gap.max()

def logits(backbone, b, prompt):
    with torch.no_grad(): return forward(backbone, b, prompt)

# --- ours to theirs --------------------------------------------------------------------------------------------------
def test_our_prompt_in_peft(place, tmp_path):
    ours = load_backbone(place); bank = new_prompt('shallow', ours, length=P, n=3, seed=4)
    bank.table_NPD.data += torch.randn(bank.table_NPD.shape, generator=torch.Generator().manual_seed(0))
    export_peft(ours, bank, tmp_path/'a', index=1)
    model = peft.PeftModel.from_pretrained(plain(place), tmp_path/'a').eval(); b = batch()
    same(theirs(model, b), logits(ours, b, bank.select([1])), b.tgt_mask_BU)
    assert (theirs(model, b)-logits(ours, b, bank.select([0]))).abs().max()>1e-3   # another prompt is another answer
    assert (theirs(model, b)-logits(ours, b, None)).abs().max()>1e-3
    assert sum(p.numel() for p in model.prompt_encoder.parameters())==P*ours.dim   # no dead half

def test_generate_reads_the_prompt_too(place, tmp_path):
    ours = load_backbone(place); prompt = ShallowPrompt(torch.randn(1,P,24, generator=torch.Generator().manual_seed(3))*3)
    model = peft.PeftModel.from_pretrained(plain(place), export_peft(ours, prompt, tmp_path/'a')).eval(); b = batch()
    out = model.generate(input_ids=b.src_BT, attention_mask=b.src_mask_BT, max_new_tokens=4, do_sample=False)
    first = logits(ours, make_batch([([20,21,22,23,24,1],[1])]), prompt)[0,0].argmax()
    assert out[0,1]==first

@pytest.mark.parametrize('dtype', ['fp32','bf16'])
def test_the_card_s_lines_run(place, tmp_path, dtype):
    "Also where the backbone is stored in bfloat16: transformers would compute in it if the card did not say otherwise"
    ours = load_backbone(save_backbone(load_backbone(place), tmp_path/'base', dtype=dtype)); prompt = new_prompt('shallow', ours, length=P, seed=2)
    export_peft(ours, prompt, tmp_path/'a', card=dict(task='copa'))
    code = re.search(r'```python\n(.*?)```', (tmp_path/'a'/'README.md').read_text(), re.S)[1]
    scope = {}; exec(code.replace("'.'", repr(str(tmp_path/'a'))), scope); b = batch()
    same(theirs(scope['model'].eval(), b), logits(ours, b, prompt), b.tgt_mask_BU)
    assert json.loads((tmp_path/'a'/'prompt_meta.json').read_text())['task']=='copa'

def test_peft_knows_every_field_we_write(place, tmp_path):
    ours = load_backbone(place); export_peft(ours, new_prompt('shallow', ours, length=P), tmp_path/'a')
    with warnings.catch_warnings(): warnings.simplefilter('error'); config = peft.PeftConfig.from_pretrained(str(tmp_path/'a'))
    written = json.loads((tmp_path/'a'/'adapter_config.json').read_text())
    assert {k:getattr(config, k) for k in written}==written
    assert (config.num_transformer_submodules, config.num_virtual_tokens, config.token_dim)==(1, P, 24)

def test_a_trained_backbone_travels_as_its_folder(place, tmp_path):
    "The name of a backbone that was trained further leads to the old weights; the hash says so on the way back"
    ours = load_backbone(place); prompt = new_prompt('shallow', ours, length=P)
    with torch.no_grad(): ours.model.shared.weight[30] += 1
    export_peft(ours, prompt, tmp_path/'a')
    with pytest.warns(UserWarning, match='tuned on other weights'): import_peft(tmp_path/'a', load_backbone(place))

# --- theirs to ours --------------------------------------------------------------------------------------------------
CONFIGS = dict(
    prompt=lambda **k: peft.PromptTuningConfig(task_type='SEQ_2_SEQ_LM', num_virtual_tokens=P, **k),
    ptuning=lambda **k: peft.PromptEncoderConfig(task_type='SEQ_2_SEQ_LM', num_virtual_tokens=P, encoder_hidden_size=16, **k),
    mpt=lambda **k: peft.MultitaskPromptTuningConfig(task_type='SEQ_2_SEQ_LM', num_virtual_tokens=P, num_tasks=3, num_ranks=2, **k))

def trained(place, folder, kind, steps=4, safe=True, **more):
    "An adapter that PEFT trained for a few steps and saved, and its model"
    torch.manual_seed(0); model = peft.get_peft_model(plain(place), CONFIGS[kind](**more))
    if kind=='mpt':
        with torch.no_grad(): [p.add_(.5) for n,p in model.named_parameters() if 'prefix_task' in n]   # away from its start near 0
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=.1); b = batch(); task = dict(task_ids=torch.tensor([0,1,2])) if kind=='mpt' else {}
    for _ in range(steps):
        opt.zero_grad(); model(input_ids=b.src_BT, attention_mask=b.src_mask_BT, labels=b.tgt_BU.masked_fill(b.tgt_mask_BU==0, -100), **task).loss.backward(); opt.step()
    model.eval().save_pretrained(folder, safe_serialization=safe)
    return model

@pytest.mark.parametrize('safe', [True,False], ids=['safetensors','bin'])
@pytest.mark.parametrize('kind', ['prompt','ptuning'])
def test_their_prompt_here(place, tmp_path, kind, safe):
    model = trained(place, tmp_path/'a', kind, safe=safe, num_transformer_submodules=1); ours = load_backbone(place); b = batch()
    same(logits(ours, b, import_peft(tmp_path/'a', ours)), theirs(model, b), b.tgt_mask_BU)

@pytest.mark.parametrize('kind', ['prompt','ptuning'])
def test_their_default_has_a_dead_half(place, tmp_path, kind):
    model = trained(place, tmp_path/'a', kind); ours = load_backbone(place); b = batch()
    with pytest.warns(UserWarning, match='dead half'): prompt = import_peft(tmp_path/'a', ours)
    assert prompt.table.shape==(1,P,24)
    same(logits(ours, b, prompt), theirs(model, b), b.tgt_mask_BU)

def test_their_multitask_prompt_here(place, tmp_path):
    "One adapter with three tasks becomes a bank of three; each example of the batch uses its own"
    model = trained(place, tmp_path/'a', 'mpt', num_transformer_submodules=1); ours = load_backbone(place); bank = import_peft(tmp_path/'a', ours)
    assert len(bank)==3
    for order in ([0,1,2],[2,2,0]):
        b = batch(order); same(logits(ours, b, bank), theirs(model, b, task_ids=torch.tensor(order)), b.tgt_mask_BU)

def test_their_multitask_default_keeps_the_encoder_half(place, tmp_path):
    trained(place, tmp_path/'a', 'mpt'); ours = load_backbone(place)
    with pytest.warns(UserWarning, match='before the decoder in training'): bank = import_peft(tmp_path/'a', ours)
    from safetensors.torch import load_file
    t = load_file(tmp_path/'a'/'adapter_model.safetensors')
    assert torch.allclose(bank.table[1].detach(), t['prompt_embeddings'][:P]*(t['prefix_task_cols'][1,:P]@t['prefix_task_rows'][1]))

def test_there_and_back(place, tmp_path):
    ours = load_backbone(place); bank = new_prompt('shallow', ours, length=P, n=2, seed=9)
    model = peft.PeftModel.from_pretrained(plain(place), export_peft(ours, bank, tmp_path/'a', index=1)); model.save_pretrained(tmp_path/'b')
    assert torch.equal(import_peft(tmp_path/'b', ours).table[0], bank.table[1])

# --- decoder-only models ---------------------------------------------------------------------------------------------
CAUSAL = ['llama','qwen','neox','gpt2','mistral']

@pytest.fixture(scope='module', params=CAUSAL)
def causal(request, tmp_path_factory):
    b = random_backbone(kind=request.param, dim=24, heads=4, layers=(3,3), seed=1)
    return save_backbone(b, tmp_path_factory.mktemp('causal')/request.param)

def continued(model, b, skip=0, **more):
    "Logits of the targets when source and target are one right-padded text, as PEFT's user would run it"
    rows = [[*s[:n].tolist(), *t[:m].tolist()] for s,n,t,m in zip(b.src_BT, b.src_mask_BT.sum(1), b.tgt_BU, b.tgt_mask_BU.sum(1))]
    whole = make_batch([(r,r) for r in rows]); out = torch.zeros(*b.tgt_BU.shape, model.config.vocab_size)
    with torch.no_grad(): found = model(input_ids=whole.src_BT, attention_mask=whole.src_mask_BT, **more).logits
    for i,(n,m) in enumerate(zip(b.src_mask_BT.sum(1).tolist(), b.tgt_mask_BU.sum(1).tolist())): out[i,:m] = found[i,skip+n-1:skip+n-1+m]
    return out

def plain_causal(place):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(place).eval()

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_our_prompt_of_a_decoder_only_model_in_peft(causal, tmp_path, kind):
    ours = load_backbone(causal); bank = new_prompt(kind, ours, length=P, n=2, seed=5); b = batch()
    bank.table.data += torch.randn(bank.table.shape, generator=torch.Generator().manual_seed(0))
    model = peft.PeftModel.from_pretrained(plain_causal(causal), export_peft(ours, bank, tmp_path/'a', index=1)).eval()
    same(continued(model, b, skip=P*(kind=='shallow')), logits(ours, b, bank.select([1])), b.tgt_mask_BU)
    assert ((continued(model, b, skip=P*(kind=='shallow'))-logits(ours, b, None))*b.tgt_mask_BU[...,None]).abs().max()>1e-3

@pytest.mark.parametrize('kind', ['shallow','deep'])
def test_we_write_what_peft_writes(causal, tmp_path, kind):
    "The fields of our file have the values PEFT gives them for the same model"
    ours = load_backbone(causal); export_peft(ours, new_prompt(kind, ours, length=P), tmp_path/'a')
    config = (peft.PrefixTuningConfig if kind=='deep' else peft.PromptTuningConfig)(task_type='CAUSAL_LM', num_virtual_tokens=P)
    peft.get_peft_model(plain_causal(causal), config).save_pretrained(tmp_path/'b')
    a,b = (json.loads((tmp_path/n/'adapter_config.json').read_text()) for n in 'ab')
    assert a=={k:b[k] for k in a}

@pytest.mark.parametrize('kind', ['prompt','ptuning','mpt','prefix','projected'])
def test_their_prompt_of_a_decoder_only_model_here(causal, tmp_path, kind):
    ours = load_backbone(causal); torch.manual_seed(0); more = dict(task_type='CAUSAL_LM', num_virtual_tokens=P)
    config = dict(prompt=lambda: peft.PromptTuningConfig(**more), ptuning=lambda: peft.PromptEncoderConfig(encoder_hidden_size=16, **more),
        mpt=lambda: peft.MultitaskPromptTuningConfig(num_tasks=3, num_ranks=2, **more), prefix=lambda: peft.PrefixTuningConfig(**more),
        projected=lambda: peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=16, **more))[kind]()
    model = peft.get_peft_model(plain_causal(causal), config); task = dict(task_ids=torch.tensor([0,1,2])) if kind=='mpt' else {}; b = batch([0,1,2] if kind=='mpt' else None)
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=.1)
    for _ in range(3): opt.zero_grad(); model(input_ids=b.src_BT, attention_mask=b.src_mask_BT, labels=b.src_BT.masked_fill(b.src_mask_BT==0, -100), **task).loss.backward(); opt.step()
    model.eval().save_pretrained(tmp_path/'a'); prompt = import_peft(tmp_path/'a', ours)
    assert (prompt.kind, len(prompt))==('deep' if kind in ('prefix','projected') else 'shallow', 3 if kind=='mpt' else 1)
    same(logits(ours, b, prompt), continued(model, b, skip=P*(prompt.kind=='shallow'), **task), b.tgt_mask_BU)

# --- what cannot go --------------------------------------------------------------------------------------------------
def test_a_deep_encoder_prompt_is_refused(tmp_path):
    b = random_backbone()
    with pytest.raises(UserError, match='no encoder prefix'): export_peft(b, new_prompt('deep', b, length=2), tmp_path/'a')
    assert not (tmp_path/'a').exists()

def test_their_prefix_for_t5_is_refused(place, tmp_path):
    model = peft.get_peft_model(plain(place), peft.PrefixTuningConfig(task_type='SEQ_2_SEQ_LM', num_virtual_tokens=P, token_dim=24, num_attention_heads=2)); model.save_pretrained(tmp_path/'a')
    with pytest.raises(UserError, match='self-attention alone'): import_peft(tmp_path/'a', load_backbone(place))

def test_lora_is_refused(place, tmp_path):
    peft.get_peft_model(plain(place), peft.LoraConfig(task_type='SEQ_2_SEQ_LM', r=2)).save_pretrained(tmp_path/'a')
    with pytest.raises(UserError, match='is LORA'): import_peft(tmp_path/'a')

def test_code_in_a_bin_file_does_not_run(place, tmp_path):
    trained(place, tmp_path/'a', 'prompt', steps=0, num_transformer_submodules=1, safe=False)
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'evil'), 'w'))
    torch.save(dict(prompt_embeddings=Evil()), tmp_path/'a'/'adapter_model.bin')
    with pytest.raises(UserError, match='can run code'): import_peft(tmp_path/'a')
    assert not (tmp_path/'evil').exists()

# --- bare tables -----------------------------------------------------------------------------------------------------
def test_bare_tables(tmp_path):
    import numpy as np
    from safetensors.torch import save_file
    b = random_backbone(dim=24); t = torch.randn(P,24, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path/'g.npy', t.numpy()); torch.save(t, tmp_path/'a.bin'); torch.save(dict(soft_embeds=t), tmp_path/'o.pt'); save_file(dict(x=t), tmp_path/'s.safetensors')
    for name in ('g.npy','a.bin','o.pt','s.safetensors'): assert torch.equal(import_table(tmp_path/name, b).table[0].detach(), t)
    np.save(tmp_path/'bad.npy', np.array([dict()], dtype=object))
    for name,word in [('bad.npy','cannot be read as tensors'), ('none.npy','there is no file')]:
        with pytest.raises(UserError, match=word): import_table(tmp_path/name)
    with pytest.raises(UserError, match='24 wide'): import_table(tmp_path/'g.npy', random_backbone(dim=16))
