"""GAWWN, told where the object is by its box: Reed et al., "Learning What and Where to Draw", NIPS 2016, section 4.1.

A row of the paper's Table 1, in our layers and at our widths: both networks have a pathway for the whole picture and
one that is masked to the object's box on a 16x16 map, joined. What they are told is the text's embedding with the box's
four fractions behind it, (N, embedding_dim + 4) (see pipeline.data.boxes); otherwise they are called as Stage-I's.
"""

import torch
from torch import nn

from pipeline.data.boxes import BOX_DIM, box_coverage
from pipeline.gan.architecture import Architecture
from pipeline.gan.layers import Conv, compress_text, concat_code, conv_bn, leaky_relu, relu, upsample_conv_bn
from pipeline.gan.networks import UPSAMPLING, GeneratorOutput, conditioning_of

MAP_SIZE = 16  # M in the paper


class BoxGenerator(nn.Module):
    """Text, box and noise to a picture."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the network, for pictures of architecture.stage1_size."""
        super().__init__()
        gf, code_dim = architecture.generator_dim, architecture.condition_dim
        upsample = UPSAMPLING[architecture.upsampling]
        self.seed_dim = dim = 8 * gf
        self.conditioning = conditioning_of(architecture)
        # The text in its box, to a vector that says what is where.
        self.lay_out = nn.Sequential(
            conv_bn(code_dim, gf, 4, stride=2),  # (N, gf, 8, 8)
            leaky_relu(),
            conv_bn(gf, 2 * gf, 4, stride=2),  # (N, 2 gf, 4, 4)
            leaky_relu(),
            nn.Flatten(),
            nn.Linear(32 * gf, code_dim),
            nn.BatchNorm1d(code_dim),
            leaky_relu(),
        )
        self.project = nn.Sequential(nn.Linear(code_dim + architecture.z_dim, 16 * dim), nn.BatchNorm1d(16 * dim))

        def pathway() -> nn.Sequential:
            first, second = upsample_conv_bn(dim, dim // 2, upsample), upsample_conv_bn(dim // 2, dim // 4, upsample)
            return nn.Sequential(first, relu(), second, relu())  # (N, 2 gf, 16, 16)

        self.everywhere, self.in_the_box = pathway(), pathway()
        layers: list[nn.Module] = [conv_bn(4 * gf, 2 * gf, 3), relu()]
        dim, size = 2 * gf, MAP_SIZE
        while size < architecture.stage1_size // 2:
            layers += [upsample_conv_bn(dim, dim // 2, upsample), relu()]
            dim, size = dim // 2, 2 * size
        self.to_image = nn.Sequential(*layers, upsample(dim, 3), nn.Tanh())

    def forward(self, text_embedding: torch.Tensor, z: torch.Tensor, eps: torch.Tensor) -> GeneratorOutput:
        """Generate images.

        Args:
            text_embedding: (N, embedding_dim + 4), the box behind the text's embedding.
            z: (N, z_dim) from N(0, I).
            eps: (N, condition_dim) from N(0, I), the noise of conditioning augmentation where that is on.
        """
        text, boxes = text_embedding[:, :-BOX_DIM], text_embedding[:, -BOX_DIM:]
        code = self.conditioning(text, eps)
        mask = box_coverage(boxes, MAP_SIZE)  # (N, 1, 16, 16)
        layout = self.lay_out(code.c[:, :, None, None] * mask.to(code.c.dtype))  # (N, condition_dim)
        seed = self.project(torch.cat((layout, z), dim=1)).relu()
        seed = seed.view(-1, 4, 4, self.seed_dim).permute(0, 3, 1, 2)  # (N, 8 gf, 4, 4)
        inside = self.in_the_box(seed)
        joined = torch.cat((self.everywhere(seed), inside * mask.to(inside.dtype)), dim=1)  # (N, 4 gf, 16, 16)
        return GeneratorOutput(self.to_image(joined), code.mu, code.logvar)


class BoxDiscriminator(nn.Module):
    """Does a picture look real, and is what the text says in the box?"""

    def __init__(self, architecture: Architecture) -> None:
        """Make the network, for pictures of architecture.stage1_size."""
        super().__init__()
        df, code_dim = architecture.discriminator_dim, architecture.condition_dim
        normalise = architecture.discriminator_text == "own_normalised"
        layers: list[nn.Module] = [Conv(3, df, 4, stride=2), leaky_relu()]
        dim, size = df, architecture.stage1_size // 2
        while size > MAP_SIZE:
            layers += [conv_bn(dim, 2 * dim, 4, stride=2), leaky_relu()]
            dim, size = 2 * dim, size // 2
        self.downsample = nn.Sequential(*layers)  # (N, dim, 16, 16)
        self.compress = compress_text(architecture.embedding_dim, code_dim, normalise=normalise)

        def pathway() -> nn.Sequential:
            first, second = conv_bn(dim, 2 * dim, 4, stride=2), conv_bn(2 * dim, 4 * dim, 4, stride=2)
            last = nn.Linear(64 * dim, 4 * dim)
            return nn.Sequential(first, leaky_relu(), second, leaky_relu(), nn.Flatten(), last)

        self.join = nn.Sequential(conv_bn(dim + code_dim, dim, 1), leaky_relu())
        self.everywhere, self.in_the_box = pathway(), pathway()
        self.of_the_text = nn.Linear(code_dim, 4 * dim)
        self.activation = leaky_relu()
        self.to_logit = nn.Linear(4 * dim, 1)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [-1, 1] -> (N, dim, 16, 16), free of text and box: one pass serves real and wrong pairs."""
        return self.downsample(images)

    def logits(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, dim, 16, 16), (N, embedding_dim + 4) -> (N,): above 0 where D takes the pair for real and matching."""
        code = self.compress(text[:, :-BOX_DIM])
        mask = box_coverage(text[:, -BOX_DIM:], MAP_SIZE).to(features.dtype)
        local = self.in_the_box(self.join(concat_code(features, code)) * mask)
        vector = self.everywhere(features) + local + self.of_the_text(code)  # (N, 4 dim)
        return self.to_logit(self.activation(vector)).flatten()

    def logits_alone(self, features: torch.Tensor) -> None:
        """Return None: there is no head without the text."""

    def forward(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [-1, 1], text as for `logits` -> logits (N,)."""
        return self.logits(self.image_features(images), text)
