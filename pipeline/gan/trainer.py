"""One step of a stage: update D, then G. And the state that resumes it exactly."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.gan.augmentation import shifted_and_cut
from pipeline.gan.losses import discriminator_loss, generator_loss, kl_divergence
from pipeline.gan.stages import Stage
from pipeline.gan.workers import average_gradients

ADAM_BETAS = (0.5, 0.999)

LOSSES = ("d_loss", "g_loss", "kl", "real_probability", "wrong_probability", "fake_probability")


class Trainer:
    """Both networks of a stage with their optimisers: one step, and the state to resume from."""

    def __init__(self, stage: Stage, *, kl_weight: float, augment: bool, autocast: torch.dtype | None):
        """Set up Adam for G and D.

        Args:
            stage: its networks, on their device.
            kl_weight: on the KL divergence in G's loss.
            augment: whether D sees its pictures shifted and cut (see pipeline.gan.augmentation).
            autocast: dtype to compute in; None for float32.
        """
        self._stage = stage
        self._kl_weight = kl_weight
        self._augment = augment
        self._autocast = autocast
        self._networks: dict[str, nn.Module] = {"G": stage.generator, "D": stage.discriminator}
        self._optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=0.0, betas=ADAM_BETAS, fused=True)
            for name, network in self._networks.items()
        }
        self.learning_rate = 0.0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set both optimisers' learning rate."""
        self.learning_rate = learning_rate
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self, batch: Batch, noise: Tensor) -> Tensor:
        """Update D, then G, on one worker's share of a batch; return (len(LOSSES),) float32 on the device.

        The fakes are made once: detached for D, then judged again by the updated D for G. D's features of the real
        pictures serve the real and the wrong pairs, which differ in the text alone.
        """
        discriminator = self._stage.discriminator
        with torch.autocast(noise.device.type, self._autocast, enabled=self._autocast is not None):
            # Paint.
            fakes = self._stage.generate(batch.text_embedding, noise)

            # Update D on real, wrong and fake pairs.
            discriminator.requires_grad_(True)
            real_features = discriminator.image_features(self._seen_by_d(batch.real, batch.augmentation_draws[0]))
            real_logits = discriminator.logits(real_features, batch.text_embedding)
            wrong_logits = discriminator.logits(real_features, batch.wrong_text_embedding)
            seen_fakes = self._seen_by_d(fakes.images, batch.augmentation_draws[1])
            fake_logits = discriminator(seen_fakes.detach(), batch.text_embedding)
            d_loss = discriminator_loss(real_logits, wrong_logits, fake_logits)
        self._update("D", d_loss)

        with torch.autocast(noise.device.type, self._autocast, enabled=self._autocast is not None):
            # Update G through the updated D, whose own gradients are not needed.
            discriminator.requires_grad_(False)
            g_loss = generator_loss(discriminator(seen_fakes, batch.text_embedding))
            kl = torch.zeros((), device=noise.device)
            if fakes.logvar is not None:
                kl = kl_divergence(fakes.mu, fakes.logvar)
        self._update("G", g_loss + self._kl_weight * kl)

        probabilities = [logits.float().sigmoid().mean() for logits in (real_logits, wrong_logits, fake_logits)]
        return torch.stack([d_loss, g_loss, kl, *probabilities]).detach()

    def _seen_by_d(self, images: Tensor, draws: Tensor) -> Tensor:
        return shifted_and_cut(images, draws) if self._augment else images

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self._networks[name].parameters())
        optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name: weights, buffers and Adam's moments."""
        tensors: dict[str, Tensor] = {}
        for name, network in self._networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
            for index, moments in self._optimizers[name].state_dict()["state"].items():
                tensors |= {f"adam_{name}.{index}.{key}": value for key, value in moments.items()}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state that `tensors` returned."""
        for name, network in self._networks.items():
            network.load_state_dict(_below(f"{name}.", tensors))
            parameters = list(network.parameters())
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(f"adam_{name}.", tensors).items():
                index, _, moment = key.partition(".")
                if value.dim():
                    # Fused Adam walks a weight and its moments side by side in memory: their layouts must be the same.
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                state.setdefault(int(index), {})[moment] = value
            optimizer = self._optimizers[name]
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def autocast_dtype(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where it is asked for, or where the processor has it natively; None for float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
