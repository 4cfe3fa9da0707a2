"""The interfaces that plugins implement, one file per kind, and the data that passes between them. Start here.

    condition = conditioner.sample(B)
    images    = generator(latent, condition)        # in [0, 1], (B, C, H, W)
    response  = target.respond(images)              # logits, features: {layer: tensor}
    loss      = sum(weight * term(batch))           # batch = condition, images, response, target

Shapes: B images in a batch, n classes, C channels, H x W pixels; a classifier of vectors has D features instead of
C x H x W.
"""
