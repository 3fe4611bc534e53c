"""One command for a machine with a GPU: a multi-task training step of T5-Large- and T5-XL-shaped random models, then the other benches

A step is what pretraining does: packed rows of many tasks, each behind a shallow prompt of 20, forward, backward, one Adafactor update of
transformer and prompt over several pieces. Tokens are real source and target tokens, never padding, never the prompt. MFU = counted operations of those tokens / time / peak of the card in dense bf16; the count is a
formula (attention and output layer included, recomputation and optimiser not), checked against torch's own counter in the tests.
Without a GPU the same code runs on tiny shapes: a self-test, whose result file says so."""
import argparse, contextlib, gc, json, math, re, subprocess, sys, time
from common import HERE, ROOT, _round, device, hardware, middle, parser, report, seconds, setup, small, threads, versions
import torch

RESULTS = HERE/'gpu_results.json'; NOT_YET = 'not yet measured on GPU'
SHAPES = { # google/t5-v1_1-*
    'tiny':  dict(vocab=600,   dim=32,   ff=64,   layers=2,  heads=2,  head_dim=16),
    'base':  dict(vocab=32128, dim=768,  ff=2048, layers=12, heads=12, head_dim=64),
    'large': dict(vocab=32128, dim=1024, ff=2816, layers=24, heads=16, head_dim=64),
    'xl':    dict(vocab=32128, dim=2048, ff=5120, layers=24, heads=32, head_dim=64),
}
PEAKS = [(r'H200|H100(?!.*(PCIe|NVL))|GH200', 989), (r'H100.*NVL', 835), (r'H100.*PCIe', 756), (r'A100', 312), (r'\bL4\b', 121), (r'\b4090\b', 165)] # Dense bf16 TFLOP/s by the vendor
PROMPT = 20   # shallow positions before each source, trained together with the transformer
SIBLINGS = ('rank','tune','pack','memory')

# --- counting --------------------------------------------------------------------------------------------------------
def parameters(s):
    "Weights of a shape: gated feed-forward, an output layer of its own, one table of relative distances per stack"
    D,I,F,L = s['dim'],s['heads']*s['head_dim'],s['ff'],s['layers']
    return L*(4*D*I+3*D*F+2*D)+L*(8*D*I+3*D*F+3*D)+2*D+2*s['vocab']*D+2*32*s['heads']

def operations(s, pairs, *, prompt=0, dense=False):
    """Floating-point operations of one forward and backward pass that trains everything

    pairs: (source tokens, target tokens) of each example; prompt: shallow positions before each source;
    dense: count the upper half of the decoder's self-attention too, as a kernel without a causal mask computes it"""
    D,I,F,L,V = s['dim'],s['heads']*s['head_dim'],s['ff'],s['layers'],s['vocab']; total = 0
    for t,u in pairs:
        t += prompt; own = u*u if dense else u*(u+1)/2
        encoder = L*(t*2*(4*D*I+3*D*F)+4*I*t*t)
        decoder = L*(u*2*(6*D*I+3*D*F)+t*2*2*D*I+4*I*own+4*I*u*t)
        total += encoder+decoder+u*2*D*V
    return 3*total

def peak_of(name, given=None):
    "TFLOP/s of the card, or None if it is not in the table"
    return given or next((p for pattern,p in PEAKS if re.search(pattern, name)), None)

# --- what is trained on ----------------------------------------------------------------------------------------------
def lengths(tokens):
    "Source and target token counts of examples of a multi-task mixture, about `tokens` in all"
    from promptbench.base.core import rng
    rows = json.loads((HERE/'lengths.json').read_text()); mean = sum((s+u)*n for s,u,n in rows)/sum(n for *_,n in rows)
    return rng('bench','gpu').choices([(s,u) for s,u,_ in rows], [n for *_,n in rows], k=max(16, int(tokens/mean)))

def ids_of(counts, vocab):
    "Random ids of these lengths, each text closed with </s>"
    g = torch.Generator().manual_seed(0); ids = lambda n: torch.randint(20, vocab, (n-1,), generator=g).tolist()+[1]
    return [(ids(s), ids(u)) for s,u in counts]

def pieces_of(pairs, budget, many):
    "`many` packed rows of at most `budget` tokens, as pretraining cuts them; short and long ones, as they come"
    from promptbench.model.batch import cut_rows, pack
    rows = cut_rows(pairs, budget, extra=PROMPT); step = max(1, len(rows)//many)
    return [pack([pairs[i] for i in row]) for row in rows[step//2::step][:many]]

def real(pieces):
    "(source tokens, target tokens) of every example in the pieces"
    return [p for b in pieces for p in zip(b.src_len_B.tolist(), b.tgt_len_B.tolist())]

# --- models ----------------------------------------------------------------------------------------------------------
def build(name, where):
    "A random model of the shape, drawn where it will live"
    from promptbench.model.backbone import new_backbone, word_tokenizer
    s = SHAPES[name]
    with torch.device(where): return new_backbone(word_tokenizer([f'w{i}' for i in range(s['vocab']-13)]), dim=s['dim'], ff=s['ff'], layers=(s['layers'],)*2, heads=s['heads'], head_dim=s['head_dim'])

class Master:
    "bf16 weights for the passes, fp32 masters for the update; gradients of all pieces are summed in fp32"
    def __init__(self, model, lr, more=()):
        from promptbench.train.adafactor import Adafactor
        self.low = [p for p in model.parameters() if p.requires_grad]; self.high = [torch.nn.Parameter(p.detach().float().clone()) for p in self.low]
        model.to(torch.bfloat16); self.opt = Adafactor([*self.high,*more], lr, clip=1.)   # `more`: fp32 tensors of their own, such as a prompt
        self.lead,self.params = 0,self.opt.params; self.hooks = [p.register_post_accumulate_grad_hook(self._keeper(h)) for p,h in zip(self.low, self.high)]
    def _keeper(self, high):
        def keep(low):
            high.grad = low.grad.float() if high.grad is None else high.grad.add_(low.grad); low.grad = None
        return keep
    def __len__(self): return 1
    def zero_grad(self): self.opt.zero_grad(); [setattr(p, 'grad', None) for p in self.low]
    @torch.no_grad()
    def step(self): norm = self.opt.step(); torch._foreach_copy_(self.low, self.high); return norm

# How a step is computed: weights ('autocast': fp32 with bf16 passes; 'master': bf16 with fp32 masters), how packed rows attend
# ('fused': kernels of our own, 'grouped': rectangles of similar length; 'flex': FlexAttention), and whether norms and feed-forward layers are compiled
VARIANTS = [('master','fused',False), ('master','fused',True), ('master','grouped',False), ('autocast','fused',False), ('autocast','fused',True), ('master','grouped',True), ('master','flex',False)]

def ready(name, variant, where):
    "Backbone, prompt and optimiser of a variant"
    from promptbench.train.adafactor import Adafactor
    from promptbench.prompt.bank import ShallowPrompt
    weights,_,compiled = variant; b = build(name, where); b.model.requires_grad_(True); prompt = ShallowPrompt(torch.randn(1, PROMPT, b.dim, generator=torch.Generator().manual_seed(0))).to(where)
    if weights=='autocast': b.precision = 'bf16'; opt = Adafactor([*b.model.parameters(),*prompt.parameters()], 1e-4, clip=1.)
    else: opt = Master(b.model, 1e-4, prompt.parameters())
    if compiled:
        for m in b.model.modules():
            if type(m).__name__ in ('T5LayerFF','T5LayerNorm'): m.compile(dynamic=True)   # rows differ in length
    return b,prompt,opt

# --- measuring -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def timed(opt, out):
    "Adds the seconds of every `opt.step()` to `out`"
    step = opt.step
    def measured(): box = []; out.append(seconds(lambda: box.append(step()))); return box[0]
    opt.step = measured
    try: yield
    finally: del opt.step

def measure(name, variant, *, where, budget, many, updates, peak):
    "Median update of one variant: tokens a second, MFU, peak memory"
    from functools import partial
    from promptbench.train.fit import fit, training
    from promptbench.prompt.packed import target_nll
    gpu = where=='cuda'; s = SHAPES[name]
    if gpu: torch.cuda.reset_peak_memory_stats()
    b,prompt,opt = ready(name, variant, where)
    pieces = [p.to(where) for p in pieces_of(ids_of(lengths(1.5*budget*many), s['vocab']), budget, many)]; pairs = real(pieces)
    whole,alone = [],[]
    with training(b.model, 0.), timed(opt, alone):
        one = lambda: list(fit([pieces], partial(target_nll, b, prompt=prompt, attention=variant[1]), opt))
        t = time.perf_counter(); loss = one()[0]['loss']; first = time.perf_counter()-t   # compilation included
        for _ in range(updates): whole.append(seconds(one))
    t,spread = middle(whole); alone = middle(alone[1:])[0]; tokens = sum(map(sum, pairs)); work = operations(s, pairs, prompt=PROMPT)
    return dict(variant=label(variant), tokens_per_s=tokens/t, mfu=work/t/peak/1e12 if peak else None, tflops=work/t/1e12, mfu_passes=work/(t-alone)/peak/1e12 if peak else None,
        update_s=t, spread_s=spread, optimiser_s=alone, first_s=first, tokens=tokens, examples=len(pairs), pieces=len(pieces), budget=budget,
        peak_gb=torch.cuda.max_memory_allocated()/1e9 if gpu else None, loss=loss)

def label(variant): return f"{variant[0]}, {variant[1]}{', compiled' if variant[2] else ''}"

def free():
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()
    if 'torch._dynamo' in sys.modules: torch._dynamo.reset()

def surviving(name, variant, budget, until, **kw):
    "`measure`, with half the tokens for as long as memory runs out; what went wrong instead of an exception"
    from promptbench.model.memory import out_of_memory
    while time.monotonic()<until:
        try: return measure(name, variant, budget=budget, **kw)
        except Exception as e:
            if not out_of_memory(e) or budget<=512: return dict(variant=label(variant), budget=budget, failed=f'{type(e).__name__}: {next(iter(str(e).splitlines()), "")[:200]}')
        finally: free()
        print(f'{name} {label(variant)}: memory ran out with {budget:,} tokens at a time; trying {budget//2:,}', flush=True); budget //= 2
    return dict(variant=label(variant), failed='no time left')

def products(where, n):
    "TFLOP/s of plain bf16 matrix products: what this card gives at most"
    a = torch.randn(n, n, device=where, dtype=torch.bfloat16, generator=torch.Generator(where).manual_seed(0)); a@a
    return 2*n**3/min(seconds(lambda: a@a) for _ in range(5))/1e12

def model_rows(names, variants, where, peak, untils, updates):
    "Every variant of every shape while there is time"
    out = {}; memory = torch.cuda.get_device_properties(0).total_memory/1e9 if where=='cuda' else 1
    for name,until in zip(names, untils):
        budget = 1024 if name=='tiny' else 2**int(math.log2(max(1024, memory*{'xl':120,'large':400,'base':800}[name])))
        rows = out[name] = dict(parameters=parameters(SHAPES[name]), variants=[])
        for variant in variants:
            row = surviving(name, variant, budget, until, where=where, many=2 if name=='tiny' else 8, updates=updates, peak=peak)
            rows['variants'].append(row); print(name, json.dumps({k:round(v,4) if isinstance(v,float) else v for k,v in row.items()}), flush=True)
        good = [r for r in rows['variants'] if 'failed' not in r]
        rows['best'] = max(good, key=lambda r: r['tokens_per_s']) if good else None
    return out

def siblings(where, until, record):
    "The last line of every other bench"
    out = {}
    for name in SIBLINGS:
        left = until-time.monotonic(); file = HERE/f'{name}.py'
        if not file.exists() or left<20: out[name] = dict(failed='no such bench' if not file.exists() else 'no time left'); print(name, out[name]['failed']); continue
        flags = ['--device',where]+([] if where=='cuda' else ['--small'])+([] if record and where=='cuda' else ['--no-record'])
        try:
            r = subprocess.run([sys.executable, str(file), *flags], cwd=ROOT, capture_output=True, text=True, timeout=left)
            out[name] = json.loads(r.stdout.strip().splitlines()[-1]) if r.returncode==0 else dict(failed=(r.stderr.strip().splitlines() or ['no message'])[-1][:200])
        except subprocess.TimeoutExpired: out[name] = dict(failed=f'took longer than the {left:.0f} s that were left')
        except (ValueError, IndexError): out[name] = dict(failed='its last line is not JSON')
        print(name, json.dumps({k:out[name].get(k) for k in ('ratio','goal','met','failed') if k in out[name]}), flush=True)
    return out

def write(found):
    "Keep the result file, but never lose a measurement to a self-test"
    from promptbench.base.core import to_json, write_atomic
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if found['status']==NOT_YET and old.get('status')=='measured': print(f'{RESULTS.name} holds a measurement of {old.get("hardware")}; kept it'); return
    write_atomic(RESULTS, to_json(_round(found))+'\n')

def options():
    p = parser(__doc__)
    p.add_argument('--minutes', type=float, default=8, help='stop starting new parts after this long')
    p.add_argument('--peak', type=float, default=None, help='dense bf16 TFLOP/s of the card, where it is not in the table')
    p.add_argument('--shapes', default=None, help="comma-separated, of base, large, xl (default xl,large with a GPU, else tiny)")
    p.add_argument('--compile', action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help='the variants under torch.compile too (default: with a GPU)')
    p.add_argument('--only-models', action='store_true', help='leave out the other benches')
    o = p.parse_args(); setup(o)
    return o

def main():
    o = options(); where = device(); gpu = where=='cuda'; start,total = time.monotonic(),o.minutes*60
    names = o.shapes.split(',') if o.shapes else ['xl','large'] if gpu and not small() else ['tiny']
    if set(names)-set(SHAPES): raise SystemExit(f'--shapes must be among {list(SHAPES)}, got {o.shapes}')
    peak = peak_of(torch.cuda.get_device_name(0), o.peak) if gpu else o.peak
    if gpu and peak is None: raise SystemExit(f'the peak of {torch.cuda.get_device_name(0)} is not in the table; give --peak TFLOP/s (dense bf16)')
    variants = [v for v in VARIANTS if o.compile or not v[2]]
    share = total if o.only_models else .6*total; untils = [start+share*(.7 if k+1<len(names) else 1) for k in range(len(names))]   # the other benches get the rest
    reachable = products(where, 8192 if gpu else 256)
    models = model_rows(names, variants, where, peak, untils, updates=o.repeats or (4 if gpu else 2))
    others = {} if small() or o.only_models else siblings(where, start+total, o.record)
    measured = gpu and not small() and any(m['best'] for m in models.values()); xl = measured and models.get('xl', {}).get('best')
    found = dict(status='measured' if measured else NOT_YET, hardware=hardware(), versions=versions(), threads=threads(), peak_tflops=peak, products_tflops=reachable, models=models, benches=others)
    if o.record and not small(): write(found)
    report('gpu', xl['mfu'] if xl else None, .5, unit='MFU of the T5-XL step', **{k:v for k,v in found.items() if k not in ('hardware','versions','threads')})

if __name__=='__main__': main()
