"""One step of a stage: update D, then G. And the state that resumes it exactly."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.gan.augmentation import shifted_and_cut
from pipeline.gan.layers import Conv, UpsampleConv
from pipeline.gan.losses import Logits, discriminator_loss, generator_loss, gradient_penalty, kl_divergence
from pipeline.gan.networks import GeneratorOutput
from pipeline.gan.replay import Replay
from pipeline.gan.stages import Stage
from pipeline.gan.workers import average_gradients, num_workers
from pipeline.params import GanParams, Speedup

ADAM_BETAS = (0.5, 0.999)

LOSSES = ("d_loss", "g_loss", "kl", "real_probability", "wrong_probability", "fake_probability")


class Trainer:
    """Both networks of a stage with their optimisers: one step, and the state to resume from."""

    def __init__(
        self,
        stage: Stage,
        gan: GanParams,
        *,
        augment: bool,
        accumulation: int,
        autocast: torch.dtype | None,
        speedups: Iterable[Speedup],
    ):
        """Set up Adam for G and D.

        Args:
            stage: its networks, on their device.
            gan: losses and pairs.
            augment: whether D sees its pictures shifted and cut (see pipeline.gan.augmentation).
            accumulation: parts that a worker's share of a batch is computed in, one after the other.
            autocast: dtype to compute in; None for float32.
            speedups: each computes the same function, up to rounding. transposed_upsampling: see UpsampleConv;
                winograd: see pipeline.gan.winograd, left out of a D whose gradient is differentiated again;
                channels_last: pixel by pixel in memory; fused_adam: one pass over weights and moments;
                shared_features: D's features of the real pictures serve the real and the wrong pairs;
                frozen_discriminator: D's own gradients are not computed while G is updated;
                cuda_graph: see Replay, for one worker on a GPU with fused_adam.
        """
        self._stage = stage
        self._gan = gan
        self._augment = augment
        self._accumulation = accumulation
        self._autocast = autocast
        self._speedups = frozenset(speedups)
        self._networks: dict[str, nn.Module] = {"G": stage.generator, "D": stage.discriminator}
        self._prepare()
        self._optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=0.0, betas=ADAM_BETAS, fused="fused_adam" in self._speedups)
            for name, network in self._networks.items()
        }
        # The fakes that D was trained on serve G's update too, unless it asks for others, or memory for their graph.
        self._repaints = gan.redraw_noise or accumulation > 1
        # What workers tell each other is not recorded, nor are steps that Adam counts on the processor.
        recordable = next(stage.generator.parameters()).is_cuda and num_workers() == 1
        recorded = recordable and {"cuda_graph", "fused_adam"} <= self._speedups
        self._replay = Replay(self._compute_step, self._optimizers.values()) if recorded else None
        self.learning_rate = 0.0

    def _prepare(self) -> None:
        """Bring the networks into the form that the speed-ups ask for."""
        layout = torch.channels_last if "channels_last" in self._speedups else torch.contiguous_format
        for network in self._stage.modules():
            network.to(memory_format=layout)  # pyright: ignore[reportCallIssue] - untyped overload
            differentiated_twice = network is self._stage.discriminator and self._gan.gradient_penalty != "none"
            for layer in network.modules():
                if isinstance(layer, Conv):
                    layer.winograd = "winograd" in self._speedups and not differentiated_twice
                if isinstance(layer, UpsampleConv):
                    layer.transposed = "transposed_upsampling" in self._speedups
        if self._stage.stage1_generator is not None:
            self._stage.stage1_generator.train(self._gan.stage1_batch_statistics)

    @property
    def noise_dim(self) -> int:
        """Return how many normal numbers a step takes for each picture."""
        num_uses = 1 + self._gan.redraw_noise + (self._gan.interpolation_weight > 0)
        return self._stage.noise_dim * num_uses

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set both optimisers' learning rate."""
        if self._replay is not None and learning_rate != self.learning_rate:
            self._replay.forget()  # it holds the one before
        self.learning_rate = learning_rate
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self, batch: Batch, noise: Tensor) -> Tensor:
        """Update D, then G, on one worker's share of a batch.

        Args:
            batch: the share.
            noise: (n, noise_dim) standard normal.

        Returns:
            (len(LOSSES),) float32 on the device.
        """
        return (self._replay or self._compute_step)(batch, noise)

    def _compute_step(self, batch: Batch, noise: Tensor) -> Tensor:
        noises = noise.split(self._stage.noise_dim, dim=1)  # for D's update; as they are asked for, G's and between
        of_g, between = noises[1 if self._gan.redraw_noise else 0], noises[-1]
        parts = batch.parts(self._accumulation)
        noises_d, noises_g, noises_between = (each.chunk(self._accumulation) for each in (noises[0], of_g, between))
        told_d: list[Tensor] = []
        told_g: list[Tensor] = []
        fakes: GeneratorOutput | None = None

        # Update D on real, wrong and fake pairs.
        self._stage.discriminator.requires_grad_(True)
        self._optimizers["D"].zero_grad(set_to_none=True)
        for part, part_noise in zip(parts, noises_d, strict=True):
            fakes, logits, d_loss = self.discriminator_phase(part, part_noise)
            (self.penalised(d_loss, part) / self._accumulation).backward()
            probabilities = [each.detach().float().sigmoid().mean() for each in logits[:3]]
            told_d.append(torch.stack([d_loss.detach(), *probabilities]))
        self._update("D")

        # Update G through the updated D.
        self._stage.discriminator.requires_grad_("frozen_discriminator" not in self._speedups)
        self._optimizers["G"].zero_grad(set_to_none=True)
        for part, part_noise, part_between in zip(parts, noises_g, noises_between, strict=True):
            g_loss, kl = self.generator_phase(part, part_noise, part_between, None if self._repaints else fakes)
            ((g_loss + self._gan.kl_weight * kl) / self._accumulation).backward()
            told_g.append(torch.stack([g_loss, kl]).detach())
        self._update("G")
        self._update_average()
        d_means, g_means = torch.stack(told_d).mean(dim=0), torch.stack(told_g).mean(dim=0)
        return torch.cat([d_means[:1], g_means, d_means[1:]])

    def discriminator_phase(self, part: Batch, noise: Tensor) -> tuple[GeneratorOutput, Logits, Tensor]:
        """Paint fakes, and return them with what D says of all pairs and its loss."""
        with self._casting(), torch.set_grad_enabled(not self._repaints):
            fakes = self._stage.generate(part.text_embedding, noise)
        with self._casting():
            logits = self._judge(part, fakes.images.detach())
            d_loss = discriminator_loss(logits, self._gan.adversarial_loss)
        return fakes, logits, d_loss

    def generator_phase(
        self, part: Batch, noise: Tensor, noise_between: Tensor, fakes: GeneratorOutput | None
    ) -> tuple[Tensor, Tensor]:
        """Return what D says of the fakes as a loss, and the KL divergence.

        Args:
            part: n pictures.
            noise: (n, Stage.noise_dim), which the fakes are painted with.
            noise_between: (n, Stage.noise_dim), of which every other row is for a text between two.
            fakes: of this noise; None paints them anew.
        """
        with self._casting():
            if fakes is None:
                fakes = self._stage.generate(part.text_embedding, noise)
            loss, kl = self._generator_losses(part, fakes)
            if self._gan.interpolation_weight:
                loss = loss + self._gan.interpolation_weight * self._loss_between(part, noise_between)
            return loss, kl

    def _loss_between(self, part: Batch, noise: Tensor) -> Tensor:
        """Return G's loss on texts in the middle of two neighbours of the batch: Reed et al., ICML 2016, equation 5."""
        texts = part.text_embedding.unflatten(0, (-1, 2)).mean(dim=1)  # (n / 2, text_dim)
        images = self._stage.generate(texts, noise[::2]).images
        if self._augment:
            images = shifted_and_cut(images, part.augmentation_draws[1, ::2])
        features = self._stage.discriminator.image_features(images)
        logits = self._stage.discriminator.logits(features, self._stage.text_for_discriminator(texts))
        return generator_loss(logits, form=self._gan.adversarial_loss)

    def _casting(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(next(self._stage.generator.parameters()).device.type, self._autocast)

    def _judge(self, part: Batch, fakes: Tensor) -> Logits:
        """Let D judge real, wrong and fake pairs."""
        discriminator = self._stage.discriminator
        text = self._stage.text_for_discriminator(part.text_embedding)
        real_features = discriminator.image_features(self._seen(part.real, part, 0))
        wrong_text = self._stage.text_for_discriminator(part.wrong_text_embedding)
        if part.wrong is not None:
            wrong_features = discriminator.image_features(self._seen(part.wrong, part, 2))
        elif "shared_features" in self._speedups:
            wrong_features = real_features
        else:
            wrong_features = discriminator.image_features(self._seen(part.real, part, 0))
        fake_features = discriminator.image_features(self._seen(fakes, part, 1))
        return Logits(
            real=discriminator.logits(real_features, text),
            wrong=discriminator.logits(wrong_features, wrong_text),
            fake=discriminator.logits(fake_features, text),
            real_alone=discriminator.logits_alone(real_features),
            fake_alone=discriminator.logits_alone(fake_features),
        )

    def penalised(self, d_loss: Tensor, part: Batch) -> Tensor:
        """Add the gradient penalty, which is computed in float32."""
        if self._gan.gradient_penalty == "none":
            return d_loss
        text = self._stage.text_for_discriminator(part.text_embedding)
        images = self._seen(part.real, part, 0)
        penalty = gradient_penalty(self._stage.discriminator, images, text, self._gan.gradient_penalty)
        return d_loss + self._gan.gradient_penalty_weight * penalty

    def _generator_losses(self, part: Batch, fakes: GeneratorOutput) -> tuple[Tensor, Tensor]:
        """Return what D says of the fakes as a loss, and the KL divergence."""
        discriminator = self._stage.discriminator
        features = discriminator.image_features(self._seen(fakes.images, part, 1))
        text = self._stage.text_for_discriminator(part.text_embedding)
        alone = discriminator.logits_alone(features)
        loss = generator_loss(discriminator.logits(features, text), alone, self._gan.adversarial_loss)
        if fakes.mu is None or fakes.logvar is None:
            return loss, torch.zeros_like(loss)
        return loss, kl_divergence(fakes.mu, fakes.logvar, self._gan.kl_form)

    def _seen(self, images: Tensor, part: Batch, which: int) -> Tensor:
        """Return pictures as D sees them; `which`: the draws of real (0), fake (1) or wrong (2) ones."""
        return shifted_and_cut(images, part.augmentation_draws[which]) if self._augment else images

    def _update(self, name: str) -> None:
        average_gradients(self._networks[name].parameters())
        self._optimizers[name].step()

    def _update_average(self) -> None:
        """Move the generator's average, its BatchNorm statistics included, towards the generator."""
        if self._stage.average is None:
            return
        averages, values = self._stage.average.state_dict(), self._stage.generator.state_dict()
        names = [name for name, value in values.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                [averages[name] for name in names], [values[name] for name in names], 1 - self._gan.ema_decay
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name: weights, buffers, the moving average and Adam's moments."""
        tensors: dict[str, Tensor] = {}
        for name, network in self._stateful().items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"adam_{name}.{index}.{key}": value for key, value in moments.items()}
        return tensors

    def _stateful(self) -> dict[str, nn.Module]:
        """Name every network that changes. The frozen Stage-I does so only where it follows its batches' statistics."""
        stage1 = self._stage.stage1_generator if self._gan.stage1_batch_statistics else None
        others = {"average": self._stage.average, "stage1": stage1}
        return self._networks | {name: network for name, network in others.items() if network is not None}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state that `tensors` returned."""
        if self._replay is not None:
            self._replay.forget()  # it holds the moments before
        for name, network in self._stateful().items():
            network.load_state_dict(_below(f"{name}.", tensors))
        for name, optimizer in self._optimizers.items():
            parameters = list(self._networks[name].parameters())
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(f"adam_{name}.", tensors).items():
                index, _, moment = key.partition(".")
                if value.dim():
                    # Fused Adam walks a weight and its moments side by side in memory: their layouts must be the same.
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                state.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def autocast_dtype(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where it is asked for, or is the faster one: on a GPU, or a processor's matrix unit (AMX).

    None stands for float32, in which a processor without that unit is faster, by Winograd's sums (docs/decisions/0009).
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
