"The papers' numbers, the claims as data, their verdicts, and our cells beside the paper's"
import itertools, re
import numpy as np, pandas as pd, pytest, yaml
import synth
from promptbench.base.core import UserError, data_dir
from promptbench.base import published as N
from promptbench.stats import bootstrap as B; from promptbench.stats import claims as C; from promptbench.stats import paper as P

SMALL = [('nli','a',2,2), ('nli','b',3,3), ('completion','c',4,2)]
WU = sorted(itertools.chain((f'C{i}' for i in range(1,19))), key=lambda c: int(c[1:]))

def says(e, *parts): assert all(p in str(e.value) for p in parts), str(e.value)

# --- tables ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', list(N.TABLES))
def test_every_table_loads_typed_with_a_source(name):
    d = N.load_paper(name); stem,what,types = N.TABLES[name]
    assert len(d) and d.source.notna().all() and d.attrs['source'] and d.attrs['what']==what
    assert {c:str(t) for c,t in d.dtypes.items() if c in types}==types
    raw = pd.read_csv(data_dir('paper', stem+'.csv'))
    for c in types: assert np.allclose(pd.to_numeric(raw[c]).to_numpy(float), d[c].astype('Float64').to_numpy(float, na_value=np.nan), equal_nan=True)

def test_every_csv_is_a_table(): assert {p.stem for p in data_dir('paper').glob('*.csv')}=={s for s,_,_ in N.TABLES.values()}

def test_tables_agree_with_the_specs(shared):
    "Facts, copied without loss"
    specs = shared.parent/'specs'; spec = pd.read_csv(specs/'promptability_table1.csv'); ours = N.load_paper('table1')
    assert len(spec)==len(ours) and np.allclose(spec.ARG.to_numpy(float), ours.ARG.to_numpy(float), equal_nan=True)
    xl = pd.read_csv(specs/'promptability_xl_deep_16shot_per_template.csv'); ours = N.load_paper('per_template'); assert len(xl)==len(ours)==116 and np.allclose(xl.acc_T0_reproduction, ours.acc_T0_reproduction)

def test_the_published_table_1():
    t = P.paper_table1(every=True).set_index(['method','prompt','shots'])
    want = {('none','deep',16):(2.3,3.7), ('T-only','shallow',0):(26.7,32.4), ('T+P','deep',16):(37.4,43.2), ('FOMAML','deep',0):(20.8,24.5), ('Reptile','shallow',16):(18.4,23.2), ('P-only','shallow',16):(2.9,-1.6)}
    for k,v in want.items(): assert tuple(t.loc[k,['T5-Large','T5-XL']])==v
    assert t['T5-XL']['T0','deep',16]==33.8 and t['T5-Large']['Reptile-small','deep',16]==22.8 and pd.isna(t['T5-XL']['P-only','deep',16])

def test_refuses_a_damaged_table(tmp_path):
    text = data_dir('paper','promptability_table1.csv').read_text(); head,first,*_ = text.splitlines()
    for bad,part in [(text.replace('-1.9','low',1),'column ARG'), (head+'\n'+first.split(',"')[0]+',','line 2 does not'), (text.replace('ARG','arg',1),"columns ['ARG']")]:
        (tmp_path/'promptability_table1.csv').write_text(bad)
        with pytest.raises(UserError) as e: N.load_paper('table1', tmp_path)
        says(e, part)
    with pytest.raises(UserError, match="one of \\['table1'"): N.load_paper('nowhere')

# --- claims as data --------------------------------------------------------------------------------------------------
def test_every_claim_of_the_paper_is_there():
    claims = C.load_claims(); assert list(dict.fromkeys(c['id'].split('.')[0] for c in claims))==WU or {c['id'].split('.')[0] for c in claims}==set(WU)
    assert len({c['text'] for c in claims})==len(claims)

def test_the_paper_bears_out_its_own_claims():
    "What `paper` says was computed from Table 1; where the paper has no interval the sign, and for equality the margin, must fit"
    for c in C.load_claims():
        for size,d in c['paper'].items():
            if (c['id'],size)==('C14.Reptile.dp16','XL'): assert d<0; continue   # about equal at T5-Large only, and its text says so
            ok = d>0 if c['relation']=='greater' else d<0 if c['relation']=='less' else abs(d)<=c['margin']; assert ok, (c['id'], size, d)

def test_what_the_paper_says_is_its_table():
    t = P.paper_table1(every=True).set_index(['method','prompt','shots']); size = dict(L='T5-Large', XL='T5-XL'); n = 0
    for c in C.load_claims(names=dict(L='L', XL='XL')):
        for z,d in c['paper'].items():
            value = lambda x: t.loc[(x['method'],x['prompt'],x['shots']), size[x.get('backbone',z)]]
            assert d==pytest.approx(sum(f*value(x) for f,x in C._cells(c)), abs=.051), c['id']; n += 1
    assert n>100

CLAIM = 'cells: {a: [none, deep, 0], b: {method: x, suite: p3}, short: [none, deep], word: none}\nnames: {L: large}\nmargin: {near: 5}\nclaims: [{id: X, text: t, left: %s, relation: %s, right: %s%s}]'
@pytest.mark.parametrize('left,relation,right,more,parts', [
    ('c','less','chance','',["must be one of ['a', 'b', 'short', 'word'], got 'c'"]), ('a','bigger','chance','',['relation of claim X',"'bigger'"]), ('a','equal','chance','',['margin above 0','got None']), ('a','equal','chance',', margin: far',["'near'","'far'"]),
    ('a','equal','chance',', margin: -1',['margin above 0']), ('a','equal','chance',', margin: true',['margin above 0']), ('a','less','chance',', margn: 3',["unknown keys ['margn']"]), ('[a, a, b]','less','chance','',['must name two cells','got 3']), ('chance','less','chance','',['both sides are chance']),
    ('{cell: a, backbone: $XL}','less','chance','',["must be one of ['L'], got 'XL'"]), ('b','less','chance',', where: {suite: toy}',["another ['suite'] than the condition"]), ('short','less','chance','',['must be [method, prompt, shots]']), ('word','less','chance','',['must be [method, prompt, shots]'])])
def test_refuses_a_wrong_claim(tmp_path, left, relation, right, more, parts):
    f = tmp_path/'c.yaml'; f.write_text(CLAIM%(left,relation,right,more))
    with pytest.raises(UserError) as e: C.load_claims(f)
    says(e, *parts)

def test_refuses_a_wrong_file(tmp_path):
    f = tmp_path/'c.yaml'
    for text,part in [('[1','YAML file'), ('claims: {}','list `claims`'), ('claims: [3]','must be a mapping'), ('claims: [{id: 1, text: t}]',"lacks ['left', 'relation', 'right']"),
                      ('cells: {a: [m, p, 0]}\nclaims: [{id: 1, text: t, left: a, relation: less, right: chance}, {id: 1, text: u, left: a, relation: less, right: chance}]','repeated: [\'1\']')]:
        f.write_text(text)
        with pytest.raises(UserError) as e: C.load_claims(f)
        says(e, part)
    with pytest.raises(UserError, match='YAML file'): C.load_claims(tmp_path/'none.yaml')
    with pytest.raises(UserError, match="has no names \\['XXL'\\]"): C.load_claims(names=dict(XXL='huge'))

# --- verdicts --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def both():
    "Two backbones, the larger one more skilled, the gap between T+P and T-only smaller on it; more recipes beside"
    skill = dict(synth.SKILL)|{('Reptile','deep',16):.5, ('Reptile-small','deep',16):.2, ('T0','none',0):.2}; small = synth.predictions(seeds=(0,1), n=70, datasets=SMALL, skill=skill, backbone='s')
    large = synth.predictions(seeds=(0,1), n=70, datasets=SMALL, skill={k:min(.95,.62+.35*v) for k,v in skill.items()}, backbone='l'); p = pd.concat([small,large], ignore_index=True)
    return synth.rows(p),p

def test_one_backbone_leaves_the_rest_not_run():
    p = synth.predictions(seeds=(0,1), n=60); j = C.judge(synth.rows(p), p, n=400); at = j.set_index('claim')
    assert j.claim.is_unique and set(j.verdict)<=set(C.VERDICTS) and {c.split('.')[0] for c in j.claim}==set(WU)
    assert (at.loc[['C3','C4','C7','C12.MTL'],'verdict']=='holds').all() and (at[at.index.str.startswith(('C9','C13','C14','C15','C16','C17','C18'))].verdict=='not run').all()
    ran = j[j.verdict!='not run']; assert ran.p.between(0,1).all() and (ran.p_holm>=ran.p_holm.min()).all() and (ran.lo<=ran.estimate).all() and (ran.estimate<=ran.hi).all() and j[j.verdict=='not run'].p_holm.isna().all()
    assert at.left['C7']=='T+P, shallow, 16 shots' and at.right['C3']=='none, 0 shots' and at.right['C1.0']=='chance' and at.paper['C7']=='L +7.1, XL +3.5' and (j.level==.95).all()

def test_sizes_recipes_and_differences_of_differences(both):
    rows,p = both; r = B.replicate(p, rows=rows, n=400); j = C.judge(rows, p, names=dict(L='s', XL='l'), replicates=r); at = j.set_index('claim')
    for c in ('C9.sh0','C9.sh16','C9.dp16','C16','C17.0','C18.T.dp16','C18.TP.sh16'): assert (at.verdict[[c]]!='not run').all(), c
    cell = lambda m,k,b: dict(method=m, prompt='shallow', shots=k, backbone=b)
    e = at.loc['C9.sh16']; assert e.estimate==pytest.approx(sum(f*B.estimate(r, cell(m,16,b))['estimate'] for f,m,b in [(1,'T+P','s'),(-1,'T-only','s'),(-1,'T+P','l'),(1,'T-only','l')])) and e.backbone=='l / s'
    assert j[j.claim=='C7'].backbone.tolist()==['l','s'] and len(j[j.claim=='C8.XL'])==1 and j[j.claim=='C8.XL'].backbone.tolist()==['l'] and 'l' in e.right and e.left.startswith('(T+P')
    assert (j[j.claim=='C16'].verdict=='holds').all() and j[j.claim=='C18.T.dp16'].verdict.tolist()==['holds']

def test_rows_and_order_never_matter(both):
    rows,p = both; a = C.judge(rows, p, n=100); b = C.judge(rows.sample(frac=1, random_state=5), p.sample(frac=1, random_state=6), n=100); pd.testing.assert_frame_equal(a, b)

def test_another_papers_checklist(both, tmp_path):
    rows,p = both; f = tmp_path/'other.yaml'; f.write_text('''cells: {tuned: {method: T+P, shots: 16, prompt: shallow}, one: {method: T-only, run: T-only-shallow-16-0}, recipe: {method: T+P, optimizer: sgd}}
names: {big: x}
claims:
 - {id: A, text: a, left: tuned, relation: greater, right: {cell: tuned, shots: 0}, where: {backbone: $big}}
 - {id: B, text: b, left: one, relation: greater, right: chance, where: {backbone: s}}
 - {id: C, text: c, left: recipe, relation: greater, right: chance}''')
    j = C.judge(rows, p, f, names=dict(big='l'), n=100).set_index('claim')
    assert j.verdict.A!='not run' and j.backbone.A=='l' and j.seeds.B==1 and j.verdict.C=='not run' and 'T-only-shallow-16-0' in j.left.B

def test_verdicts_come_from_the_interval():
    for lo,hi,relation,margin,want in [(1,3,'greater',None,'holds'),(-3,-1,'less',None,'holds'),(-3,-1,'greater',None,'fails'),(0,3,'greater',None,'undecided'),(-1,2,'equal',3,'holds'),(-1,4,'equal',3,'undecided'),(4,6,'equal',3,'fails'),(-9,-4,'equal',3,'fails')]:
        assert C.verdict(lo, hi, relation, margin)==want

def test_family_wise_verdicts(both):
    rows,p = both; r = B.replicate(p, rows=rows, n=4000); claims = C.load_claims(names=dict(L='s', XL='l')); one,all_ = (C.judge(rows, p, claims, replicates=r, family=f) for f in (False,True))
    ran = one.verdict!='not run'; assert (all_.verdict==one.verdict.where(~((one.p_holm>.05)&ran), 'undecided')).all() and (one.verdict[ran]!=all_.verdict[ran]).any()
    decided = one[ran&(one.verdict!='undecided')]; p_claim = decided.p_holm; assert (p_claim>=0).all()
    direction = one[ran&(one.relation!='equal')]; assert (direction.p_holm>=direction.p-1e-12).all()
    few = B.replicate(p, rows=rows, n=100)
    with pytest.raises(UserError) as e: C.judge(rows, p, claims, replicates=few, family=True)
    says(e, 'a family of', 'needs n >=', 'got 100')

def test_equality_is_shown_by_the_margin():
    "Alone in its family, p_holm of an equality is small exactly when the interval lies inside the margin, or outside"
    p = synth.predictions(seeds=(0,), n=150, datasets=SMALL, skill={('T+P','shallow',16):.4, ('T-only','shallow',16):.4})
    for m in (1,2,4,6,9,14,20):
        j = C.judge(synth.rows(p), p, [dict(id='E', text='t', left=('T+P','shallow',16), relation='equal', right=('T-only','shallow',16), margin=m)], n=1999).iloc[0]
        assert (j.verdict!='undecided')==(j.p_holm<=.05) or abs(j.p_holm-.05)<.005, m
    assert j.verdict=='holds'

def test_ambiguous_cells_are_refused(both):
    rows,p = both
    with pytest.raises(UserError, match='compare within one prompt'): C.judge(rows, p, [dict(id='X', text='t', left=dict(method='T+P', shots=16), relation='greater', right=None, margin=None)], n=10)

# --- beside the paper ------------------------------------------------------------------------------------------------
def test_our_cells_beside_theirs(both):
    rows,p = both; mine = rows[rows.backbone=='s']; t = C.compare_to_paper(mine).set_index(['method','prompt','shots'])
    table = B.interval_table(mine, p[p.backbone=='s'], n=50).set_index(['method','prompt','shots']).arg
    for k,v in table.items():
        if k in t.index: assert t.ours[k]==pytest.approx(v)
    assert t['T5-Large']['T+P','shallow',16]==30.2 and t.star['none','deep',0] and not t.star['T+P','deep',16]
    assert t.tuning['T-only','shallow',16].split()==['↓','↓','≈'] and t.tuning_agrees['T-only','shallow',16]==False and t.against_T['none','deep',0].split()==['↓','↓','↓'] and t.against_T_agrees['none','deep',0]==True
    full = C.compare_to_paper(B.interval_table(mine, p[p.backbone=='s'], n=50)); assert {'lo','hi'}<=set(full.columns) and np.allclose(full.ours, t.ours) and (full.lo<full.hi).all()
    with pytest.raises(UserError, match='compare one backbone'): C.compare_to_paper(rows)
    with pytest.raises(UserError, match="none of these cells is in the paper's Table 1"): C.compare_to_paper(mine.assign(method='mine').drop_duplicates(['dataset','template','seed']))
