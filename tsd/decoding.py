"""A student and prompts in, greedy replies out: in batches, with a key-value cache, stopping early."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tsd.corpus import chat_prompts


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Reply greedily to each prompt, as one batch.

    Prompts of one length need no mask; others are padded on the left and masked.
    """
    model.eval()
    device = model.device
    encoded = tokenizer(
        chat_prompts(prompts, tokenizer),
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(device)
    tokens, seen = encoded["input_ids"], encoded["attention_mask"]
    padded = not bool(seen.all())
    cache = DynamicCache(config=model.config)
    rows = torch.arange(len(prompts))  # where each running row of the batch belongs in the result
    replies: list[list[int]] = [[] for _ in prompts]
    positions = seen.cumsum(1).sub(1).clamp(min=0)
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=tokens,
            attention_mask=seen if padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        chosen = logits[:, -1].argmax(-1)
        running = chosen != tokenizer.eos_token_id
        if not running.all():
            # Drop what is finished, so that the batch shrinks as replies end.
            keep = running.nonzero().squeeze(1)
            chosen, seen, positions, rows = chosen[keep], seen[keep], positions[keep], rows[keep.cpu()]
            cache.batch_select_indices(keep)
            if not len(rows):
                break
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            replies[row].append(token)
        tokens = chosen[:, None]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    texts: list[str] = tokenizer.batch_decode(replies, skip_special_tokens=True)
    return texts
