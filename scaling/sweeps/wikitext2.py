# python -m scaling.sweep scaling/sweeps/wikitext2.py   (needs a GPU; wikitext2_cpu.py does not)
#
# The published project (Akshu24Tech/scaling_laws_project): small (2 layers, 4 heads, d 256) and medium
# (4, 8, 512) on WikiText-2, GPT-2 tokens, context 512, batch 8, 3 epochs, AdamW 3e-4, no schedule, untied
# head; and four more sizes, so that a line means something. It pads every line to 512 tokens and counts
# the padding in its loss; here the text is packed.
_sizes = {"2x128": (2, 2, 128), "2x192": (2, 3, 192), "small": (2, 4, 256), "4x256": (4, 4, 256),
          "4x384": (4, 6, 384), "medium": (4, 8, 512)}
base = dict(dataset="wikitext2", block_size=512, batch_size=8, epochs=3, tie_weights=False, bias=True,
            dropout=0.1, learning_rate=3e-4, schedule="constant", warmup_iters=0, weight_decay=0.01,
            beta2=0.999, grad_clip=0.0)
runs = [dict(name=name, n_layer=layers, n_head=heads, n_embd=d)
        for name, (layers, heads, d) in _sizes.items()]
