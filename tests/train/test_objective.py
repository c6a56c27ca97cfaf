"""The loss of a batch: what it is by the plain way, and what it keeps no memory of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.data.collate import Batch
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import decoder_layers
from flamvid.ops import HalfLinear, media_index
from flamvid.train import objective
from flamvid.train.objective import Objective, checkpoint_layers
from flamvid.train.precision import halve_frozen
from tests.train.toy import MEDIA, VOCAB, make_batch, make_flamingo


def plain_loss(model: Flamingo, batch: Batch) -> Tensor:
    """Row by row, from all logits."""
    total = torch.zeros(())
    for row in range(len(batch.ids)):
        ids = batch.ids[row : row + 1]
        attend = "next" if batch.attend_next[row] else "previous"
        index = media_index(ids, MEDIA, attend)  # type: ignore[arg-type]
        assert batch.features is not None
        assert batch.frame_counts is not None
        features, counts = batch.features[row : row + 1], batch.frame_counts[row : row + 1]
        logits = model(features, ids, index, frame_counts_BM=counts)[0]
        total = total + F.cross_entropy(logits, batch.targets[row], reduction="sum")
    return total


def gradients(model: Flamingo, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.trained(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("first", [0, 1])
def test_loss_and_gradients_are_the_plain_ones(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_CHUNK", 7)  # several chunks, the last of them short
    model, batch = make_flamingo(first), make_batch(rows=5)
    got, want = Objective(model, MEDIA)(batch), plain_loss(model, batch)
    torch.testing.assert_close(got, want)
    plain = gradients(model, want)
    for name, grad in gradients(model, got).items():
        torch.testing.assert_close(grad, plain[name], atol=1e-4, rtol=1e-3)
        assert grad.any(), name


def test_each_row_looks_back_or_ahead_as_it_says() -> None:
    model, batch = make_flamingo(), make_batch(rows=4)
    ahead, back = (
        Objective(model, MEDIA)(replace(batch, attend_next=torch.full((4,), to)))
        for to in (True, False)
    )
    assert abs(float((ahead - back).detach())) > 0.01


def test_nothing_below_the_first_inserted_layer_is_kept_for_a_gradient() -> None:
    model, needs = make_flamingo(first=1, layers=3), []
    for layer in decoder_layers(model.lm.lm):
        layer.register_forward_hook(lambda _, __, out: needs.append(_hidden(out).requires_grad))
    loss = Objective(model, MEDIA)(make_batch())
    assert needs == [False, True, True]
    loss.backward()
    trained = {id(p) for _, p in model.trained()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)


def _hidden(out: object) -> Tensor:
    found = out[0] if isinstance(out, tuple) else out
    assert isinstance(found, Tensor)
    return found


def test_only_the_rows_of_new_tokens_learn() -> None:
    model = make_flamingo(first=0)
    tokens = model.lm.tokens
    assert tokens is not None
    assert tokens.head_weight is not None
    names = [name for name, _ in model.trained() if name.startswith("tokens")]
    assert names == ["tokens.weight", "tokens.head_weight"]
    assert tokens.weight.shape == (1, 16)
    # Where the gradient would have to go through frozen layers below, the input row stays.
    names = [name for name, _ in make_flamingo(first=1).trained() if name.startswith("tokens")]
    assert names == ["tokens.head_weight"]


def test_new_rows_are_what_the_tables_rows_would_be() -> None:
    model = make_flamingo(first=0)
    lm, tokens = model.lm.lm, model.lm.tokens
    assert tokens is not None
    assert tokens.head_weight is not None
    rows = torch.randn(2, 16)
    with torch.no_grad():
        tokens.weight.copy_(rows[:1])
        tokens.head_weight.copy_(rows[1:])
    ids = torch.tensor([[3, VOCAB - 1, 5]])
    got = model.lm.head(model.lm(ids))
    plain = make_flamingo(first=0)
    plain.lm.tokens = plain.lm.new_head = None
    table, head = plain.lm.lm.get_input_embeddings(), plain.lm.lm.get_output_embeddings()
    del table.forward  # what add_tokens put in front of it
    with torch.no_grad():
        table.weight[-1:], head.weight[-1:] = rows[:1], rows[1:]
    torch.testing.assert_close(got, plain.lm.head(plain.lm(ids)))
    torch.testing.assert_close(model.lm.head.weight, head.weight)
    assert not torch.equal(lm.get_output_embeddings().weight, head.weight)


def test_tokens_past_the_table_have_columns_of_their_own() -> None:
    model = make_flamingo(first=0)
    model.lm.tokens = model.lm.new_head = None
    del model.lm.lm.get_input_embeddings().forward
    model.lm.add_tokens([VOCAB + 2])
    logits = model.lm.head(model.lm(torch.tensor([[3, VOCAB + 2]])))
    assert logits.shape == (1, 2, VOCAB + 3)
    assert logits[..., VOCAB : VOCAB + 2].isinf().all()
    assert logits[..., VOCAB + 2].isfinite().all()


def test_checkpointed_layers_give_the_same_gradients() -> None:
    batch, model = make_batch(), make_flamingo(first=1)
    plain = gradients(model, Objective(model, MEDIA)(batch))
    runs: list[int] = []
    decoder_layers(model.lm.lm)[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    checkpoint_layers(model)
    again = gradients(model, Objective(model, MEDIA)(batch))
    assert len(runs) == 2  # on the way forward, and on the way back
    for name, grad in again.items():
        torch.testing.assert_close(grad, plain[name], atol=1e-4, rtol=1e-3)


def test_layers_are_made_again_in_bfloat16_where_they_were_made_in_it() -> None:
    def learnt(model: Flamingo) -> dict[str, Tensor]:
        halve_frozen(decoder_layers(model.lm.lm))
        with HalfLinear():
            Objective(model, MEDIA)(batch).backward()
        return {name: p.grad for name, p in model.trained() if p.grad is not None}

    batch, model = make_batch(), make_flamingo(first=1)
    plain, checkpointed = learnt(model), make_flamingo(first=1)
    checkpoint_layers(checkpointed)
    again = learnt(checkpointed)
    assert again.keys() == plain.keys()
    for name, grad in again.items():
        assert torch.equal(grad, plain[name]), name


def test_text_alone_is_a_loss_of_the_language_model() -> None:
    model, batch = make_flamingo(), make_batch(media=0)
    model.lm.lm.requires_grad_(True)
    loss = Objective(model, MEDIA)(batch)
    logits = model.lm.head(model.lm(batch.ids))
    want = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert all(p.grad is not None for p in model.lm.lm.model.layers.parameters())


def test_vision_learns_from_frames_where_it_is_thawed() -> None:
    model = make_flamingo()
    model.resampler.norm_features = nn.LayerNorm(256)
    model.resampler.project = nn.Linear(256, 8, bias=False)
    batch = make_batch(rows=2)
    frames = torch.randn(2, 2, 3, 3, 64, 64)
    seen = replace(batch, features=None, frames=frames)
    Objective(model, MEDIA)(seen).backward()
    assert all(p.grad is None for p in model.vision.parameters())
    model.vision.requires_grad_(True)
    Objective(model, MEDIA)(seen).backward()
    assert next(model.vision.parameters()).grad is not None
    # Frames past a media's count are not looked at.
    assert seen.frame_counts is not None
    past = torch.arange(3) >= seen.frame_counts[..., None]
    assert past.any()
    other = replace(seen, frames=frames.masked_fill(past[..., None, None, None], 9.0))
    torch.testing.assert_close(Objective(model, MEDIA)(other), Objective(model, MEDIA)(seen))
