"Loading, saving and running backbones: the output layer, the hub's file format, clear errors, frozen weights"
import copy, json, os
import pytest, torch
from safetensors.torch import load_file, save_file
from promptbench.base.core import UserError
from promptbench.model.batch import Batch, make_batch
from promptbench.model.backbone import *
from promptbench.prompt.forward import *
from promptbench.prompt.bank import DeepPrompt, NoPrompt
from promptbench.prompt.inits import new_prompt

torch.set_num_threads(1)
WORDS = [f'w{i}' for i in range(40)]

@pytest.fixture(scope='module')
def toy(): return random_backbone(WORDS, dim=16, layers=(2,1), heads=2, seed=3)

def a_batch(): return make_batch([([13,14,15,16,1],[17,18,1]), ([19,20,1],[21,1]), ([22,1],[23,24,25,26,1])])

def hf(folder, **kw):
    from transformers import AutoModelForSeq2SeqLM
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, **kw).eval()

def hf_logits(model, b): return model(input_ids=b.src_BT, attention_mask=b.src_mask_BT, labels=b.tgt_BU).logits

def google_folder(path, *, same_head=False, drop=(), **config):
    "A folder in exactly the format of google/t5-*-lm-adapt: old config keys, one file with `shared` and `lm_head`"
    b = random_backbone(WORDS, dim=16, layers=(2,1), heads=2, seed=5); save_backbone(b, path)
    tensors = load_file(path/'model.safetensors')
    if same_head: tensors['lm_head.weight'] = tensors['shared.weight'].clone()
    save_file({k:v for k,v in tensors.items() if k not in drop}, path/'model.safetensors', metadata=dict(format='pt'))
    c = dict(architectures=['T5ForConditionalGeneration'], d_ff=32, d_kv=8, d_model=16, decoder_start_token_id=0, dropout_rate=.1, eos_token_id=1, feed_forward_proj='gated-gelu',
        initializer_factor=1., is_encoder_decoder=True, layer_norm_epsilon=1e-6, model_type='t5', num_decoder_layers=1, num_heads=2, num_layers=2, output_past=True, pad_token_id=0,
        relative_attention_num_buckets=32, tie_word_embeddings=False, transformers_version='4.15.0', use_cache=True, vocab_size=len(b.tokenizer))
    (path/'config.json').write_text(json.dumps({**c, **config})); return path

# ---- the untouched model

@pytest.mark.parametrize('train', [False,True])
def test_no_prompt_is_the_untouched_model(tmp_path, toy, train):
    model = hf(save_backbone(toy, tmp_path/'m'), attn_implementation='eager').train(train); b = a_batch(); want = hf_logits(model, b)
    ours = toy.clone().train(train)
    for prompt in (None, NoPrompt(), new_prompt('deep', toy, length=0), new_prompt('shallow', toy, length=0)):
        torch.testing.assert_close(forward(ours, b, prompt), want, atol=1e-5, rtol=1e-5)

def test_dropout_falls_as_in_the_untouched_model(tmp_path):
    ours = random_backbone(WORDS, dim=16, heads=2, dropout=.3).train(); b = a_batch()
    model = hf(save_backbone(ours, tmp_path/'m'), attn_implementation='eager').train()
    torch.manual_seed(0); want = hf_logits(model, b)
    torch.manual_seed(0); torch.testing.assert_close(forward(ours, b), want, atol=1e-5, rtol=1e-5)
    torch.manual_seed(0); torch.testing.assert_close(forward(ours, b, new_prompt('deep', ours, length=0)), want, atol=1e-5, rtol=1e-5)
    torch.manual_seed(1); assert not torch.allclose(forward(ours, b), want, atol=1e-3)

def test_padding_of_others_changes_nothing(toy):
    long = make_batch([([13,14,15,1],[17,18,1]), (list(range(13,40))+[1],list(range(13,33))+[1])], multiple=8)
    torch.testing.assert_close(forward(toy, long)[0,:3], forward(toy, make_batch([([13,14,15,1],[17,18,1])]))[0], atol=1e-5, rtol=1e-5)

def test_masked_ids_are_not_read(toy):
    b = a_batch(); c = Batch(b.src_BT.clone(), b.tgt_BU, b.index_B, b.src_mask_BT, b.tgt_mask_BU)
    c.src_BT[b.src_mask_BT==0] = 33
    torch.testing.assert_close(forward(toy, c), forward(toy, b), atol=1e-6, rtol=1e-6)

def test_a_row_of_padding_only_stays_finite(toy):
    b = a_batch(); b.src_mask_BT[1] = 0
    for precision in ('fp32','bf16'):
        t = toy.clone(); t.precision = precision
        assert forward(t, b).isfinite().all()

# ---- the output layer

@pytest.mark.parametrize('same_head', [False,True])
def test_google_format_keeps_its_own_head_unscaled(tmp_path, same_head):
    b = load_backbone(google_folder(tmp_path/'g', same_head=same_head)); tensors = load_file(tmp_path/'g'/'model.safetensors')
    m = b.model; assert m.lm_head.weight is not m.shared.weight and m.lm_head.weight.data_ptr()!=m.shared.weight.data_ptr()
    assert torch.equal(m.lm_head.weight, tensors['lm_head.weight']) and torch.equal(m.shared.weight, tensors['shared.weight'])
    assert m.encoder.embed_tokens.weight is m.shared.weight and m.decoder.embed_tokens.weight is m.shared.weight
    batch = a_batch(); states = m.decoder(input_ids=shift_right(b, batch.tgt_BU), encoder_hidden_states=encode(b, batch).states_BTD, encoder_attention_mask=batch.src_mask_BT)[0]
    torch.testing.assert_close(forward(b, batch), states@tensors['lm_head.weight'].T, atol=1e-6, rtol=1e-5)   # no d**-0.5

def test_round_trips_are_exact(tmp_path):
    first = load_backbone(google_folder(tmp_path/'g')); batch = a_batch(); want = forward(first, batch)
    save_backbone(first, tmp_path/'a'); again = load_backbone(tmp_path/'a')
    assert weight_hashes(again)==weight_hashes(first) and torch.equal(forward(again, batch), want)
    assert sorted(load_file(tmp_path/'a'/'model.safetensors'))==sorted(load_file(tmp_path/'g'/'model.safetensors'))
    config = json.loads((tmp_path/'a'/'config.json').read_text()); assert config['tie_word_embeddings'] is False and config['scale_decoder_outputs'] is False
    assert torch.equal(hf_logits(hf(tmp_path/'a', attn_implementation='eager'), batch), hf_logits(hf(tmp_path/'g', attn_implementation='eager'), batch))

def test_what_transformers_itself_saved_comes_back(tmp_path):
    first = load_backbone(google_folder(tmp_path/'g')); first.model.save_pretrained(tmp_path/'h'); first.tokenizer.save_pretrained(tmp_path/'h')
    assert torch.equal(forward(load_backbone(tmp_path/'h'), a_batch()), forward(first, a_batch()))

def test_tied_and_scaled_t5_v10(tmp_path):
    b = random_backbone(WORDS, dim=16, tie_word_embeddings=True, feed_forward_proj='relu'); again = load_backbone(save_backbone(b, tmp_path/'m'))
    assert again.model.lm_head.weight is again.model.shared.weight and again.model.config.scale_decoder_outputs
    assert 'lm_head.weight' not in load_file(tmp_path/'m'/'model.safetensors') and torch.equal(forward(again, a_batch()), forward(b, a_batch()))

def test_clone_moves_alone(toy):
    before = weight_hashes(toy); c = toy.clone(); assert c.model.lm_head.weight is not c.model.shared.weight and c.model.encoder.embed_tokens.weight is c.model.shared.weight
    with torch.no_grad(): [p.add_(1) for p in c.model.parameters()]
    assert weight_hashes(toy)==before and not set(weight_hashes(c).values())&set(before.values())

def test_half_size_files(tmp_path, toy):
    half = load_backbone(save_backbone(toy, tmp_path/'h', dict(what='half'), dtype='bf16'))
    assert half.model.shared.weight.dtype==torch.float32 and json.loads((tmp_path/'h'/'card.json').read_text())==dict(what='half')
    assert load_file(tmp_path/'h'/'model.safetensors')['shared.weight'].dtype==torch.bfloat16
    again = load_backbone(save_backbone(half, tmp_path/'h2', dtype='bf16')); assert weight_hashes(again)==weight_hashes(half)   # nothing is rounded twice

def test_tokenizer_round_trip(tmp_path, toy):
    t = load_backbone(save_backbone(toy, tmp_path/'m')).tokenizer
    assert (t.pad_token_id,t.eos_token_id,t.unk_token_id,len(t))==(0,1,2,len(toy.tokenizer)) and sorted(t.all_special_ids)==list(range(13))
    for text in ('w3 w1', 'w3  nothing w39', '<extra_id_0> w1 <extra_id_9>', ''): assert t(text)['input_ids']==toy.tokenizer(text)['input_ids']
    assert t('w0')['input_ids']==[13,1] and t.decode([13,14])=='w0 w1'

# ---- other families

def test_bart_runs_through_the_same_code():
    from transformers import BartConfig, BartForConditionalGeneration
    torch.manual_seed(0); m = BartForConditionalGeneration(BartConfig(vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, dropout=0., attn_implementation='eager')).eval()
    b = a_batch(); ours = Backbone('bart', copy.deepcopy(m), None)
    want = m(input_ids=b.src_BT, attention_mask=b.src_mask_BT, decoder_input_ids=shift_right(ours, b.tgt_BU)).logits
    torch.testing.assert_close(forward(ours, b), want, atol=1e-5, rtol=1e-5); assert len(ours.slots)==4 and ours.head_dim==8
    torch.testing.assert_close(forward(ours, b, DeepPrompt(torch.zeros(1,0,4*2*16))), want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(forward(ours, b, DeepPrompt(torch.ones(1,2,4*2*16))), want, atol=1e-3)

def test_mt5_folder(tmp_path):
    from transformers import MT5Config, MT5ForConditionalGeneration
    torch.manual_seed(0); m = MT5ForConditionalGeneration(MT5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=False))
    m.lm_head.weight = torch.nn.Parameter(torch.randn(60,16)); first = Backbone('mt5', m.eval(), word_tokenizer(WORDS)); b = a_batch()
    assert torch.equal(forward(load_backbone(save_backbone(first, tmp_path/'m')), b), forward(first, b))

# ---- precision

def test_bf16_is_close_and_gradients_are_fp32(toy):
    low = freeze(toy.clone()); low.precision = 'bf16'; b = a_batch()
    for kind in ('shallow','deep'):
        p = new_prompt(kind, toy, length=3); grads = []
        for t in (toy,low):
            p.zero_grad(); logits = forward(t, b, p); sequence_nll(logits, b.tgt_BU, b.tgt_mask_BU).sum().backward(); grads.append(p.table.grad.clone())
        assert logits.dtype==torch.bfloat16 and p.table.grad.dtype==torch.float32 and all(q.grad is None for q in low.model.parameters())
        assert torch.nn.functional.cosine_similarity(grads[0].flatten(), grads[1].flatten(), 0)>.98

def test_auto_precision_is_one_of_two(): assert pick_precision('auto') in ('fp32','bf16') and pick_precision('auto')==pick_precision('auto')

# ---- frozen

def test_only_the_prompt_changes(toy):
    t = freeze(toy.clone()); before = weight_hashes(t); b = a_batch()
    for kind in ('shallow','deep'):
        p = new_prompt(kind, t, length=3); start = p.table.detach().clone(); opt = torch.optim.SGD(p.parameters(), lr=.1)
        for _ in range(2): opt.zero_grad(); sequence_nll(forward(t, b, p), b.tgt_BU, b.tgt_mask_BU).sum().backward(); opt.step()
        assert weight_hashes(t)==before and bool((p.table!=start).all())

def test_the_prompt_leaves_after_an_error(toy):
    t = toy.clone(); p = new_prompt('deep', t, length=2); handle = t.model.decoder.block[0].register_forward_hook(lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): forward(t, a_batch(), p)
    handle.remove(); assert all(getattr(s,'prompt_kv',None) is None for s in t.slots)
    torch.testing.assert_close(forward(t, a_batch()), forward(toy, a_batch()))

# ---- errors

def test_clear_errors(tmp_path, monkeypatch, toy):
    (tmp_path/'empty').mkdir(); (tmp_path/'file').write_text('x'); (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'config.json').write_text('{}'); (tmp_path/'bin'/'pytorch_model.bin').write_text('x')
    for name,words in [(tmp_path/'missing','there is no such folder'), (tmp_path/'empty','must hold config.json'), (tmp_path/'file','is another file'), (tmp_path/'bin','.safetensors'), ('a/b/c','no such folder')]:
        with pytest.raises(UserError, match=words): load_backbone(name)
    with pytest.raises(UserError, match='precision must be one of'): load_backbone('tiny', precision='fp8')

def test_damaged_folders(tmp_path):
    lacks = google_folder(tmp_path/'lacks', drop=['encoder.block.0.layer.0.SelfAttention.q.weight'])
    with pytest.raises(UserError, match='SelfAttention.q.weight'): load_backbone(lacks)
    broken = google_folder(tmp_path/'broken'); (broken/'model.safetensors').write_bytes(b'not a tensor file')
    with pytest.raises(UserError, match='cannot be read'): load_backbone(broken)
    gpt = google_folder(tmp_path/'gpt', model_type='gpt2', architectures=['GPT2LMHeadModel'])
    with pytest.raises(UserError, match='encoder-decoder'): load_backbone(gpt)
    bad = google_folder(tmp_path/'bad'); (bad/'config.json').write_text('{')
    with pytest.raises(UserError, match='cannot be read'): load_backbone(bad)

def test_hub_id_without_a_network(monkeypatch):
    import huggingface_hub.constants as c
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='neither a folder here nor complete in the Hugging Face cache.*hf download nobody/no-such-model'): load_backbone('nobody/no-such-model')

def test_saving_where_one_may_not(tmp_path, toy):
    (tmp_path/'file').write_text('x')
    with pytest.raises(UserError, match='a file is in the way'): save_backbone(toy, tmp_path/'file'/'m')
    assert sorted(p.name for p in tmp_path.iterdir())==['file']

def test_a_cached_hub_id_loads_offline(tmp_path):
    import subprocess, sys
    cache = tmp_path/'hub'/'models--google--t5-toy-lm-adapt'; (cache/'refs').mkdir(parents=True); (cache/'refs'/'main').write_text('a'*40); (cache/'snapshots').mkdir()
    google_folder(cache/'snapshots'/('a'*40))
    code = "from promptbench.model.backbone import load_backbone; b = load_backbone('google/t5-toy-lm-adapt'); print(b.name, b.model.lm_head.weight is b.model.shared.weight, b.model.config.scale_decoder_outputs)"
    r = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'HF_HOME':str(tmp_path), 'HF_HUB_CACHE':str(tmp_path/'hub'), 'HF_HUB_OFFLINE':'1'}, capture_output=True, text=True, timeout=120)
    assert r.stdout.split()[-3:]==['google/t5-toy-lm-adapt','False','False'], r.stdout+r.stderr[-2000:]

def test_a_second_embedded_backbone_goes_by_its_name(tmp_path, monkeypatch):
    "A folder tiny-7 beside tiny is found by name, in a checkpoint as well; other names are not"
    import shutil
    from promptbench.prompt.checkpoint import load_checkpoint, save_checkpoint
    from promptbench.base.catalogue import embedded
    from promptbench.base.core import data_dir
    (tmp_path/'data'/'backbones').mkdir(parents=True); shutil.copytree(data_dir('backbones','tiny'), tmp_path/'data'/'backbones'/'tiny-7'); monkeypatch.setenv('PROMPTBENCH_HOME', str(tmp_path))
    b = load_backbone('tiny-7'); assert b.name=='tiny-7' and embedded('tiny-7').name=='tiny-7' and embedded('tiny-8') is None and embedded('../tiny-7') is None
    save_checkpoint(tmp_path/'c', backbone=b, reference='tiny-7', prompt=new_prompt('shallow', b, length=2)); assert load_checkpoint(tmp_path/'c')[0].name=='tiny-7'
    with pytest.raises(UserError, match="tiny-8"): load_backbone('tiny-8')

def test_every_layer_is_told_where_attention_goes(toy):
    "In some releases of transformers the stacks hold configs of their own, which the model's does not reach: a prompt would then be ignored without a word"
    m = toy.clone().model
    for part in m.modules():
        if part is not m and hasattr(part, 'config'): part.config = copy.deepcopy(part.config); part.config._attn_implementation = 'sdpa'
    deep = new_prompt('deep', toy, length=3, seed=0); want = forward(toy, a_batch(), deep)
    again = Backbone('again', m, toy.tokenizer); assert {x.config._attn_implementation for x in m.modules() if hasattr(x, 'config')}=={'promptbench'}
    assert torch.equal(forward(again, a_batch(), deep), want) and not torch.allclose(want, forward(toy, a_batch()))
